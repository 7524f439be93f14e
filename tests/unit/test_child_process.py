"""A program whose lines are heard: it ends with the script that started it, however that is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from snakemake_runs import REPOSITORY

from ollamake.child_process import heard

SCRIPT = """
import sys
from ollamake.child_process import heard
from ollamake.errors import run
def main():
    with heard([sys.executable, "-c", {program!r}]) as (child, lines):
        for line in lines:
            print(line, end="", flush=True)
run(main)
"""
SLEEPING = "import time; print('at work', flush=True); time.sleep(60)"


def test_lines_errors_included_and_the_exit_code(tmp_path: Path) -> None:
    program = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"
    with heard([sys.executable, "-c", program], cwd=tmp_path) as (child, lines):
        assert list(lines) == ["one\n", "two\n"]
    assert child.returncode == 3


def test_an_exception_of_ours_ends_it() -> None:
    def fail() -> None:
        with heard([sys.executable, "-c", SLEEPING]) as (child, lines):
            started.append(child)
            raise ValueError(next(lines))

    started: list[subprocess.Popen[str]] = []
    with pytest.raises(ValueError, match="at work"):
        fail()
    (child,) = started
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_told_to_end_ends_it_and_says_how_to_go_on(number: signal.Signals) -> None:
    command = [sys.executable, "-c", SCRIPT.format(program=SLEEPING)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY / "scripts")},
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "at work\n"
        (program,) = psutil.Process(script.pid).children()
        script.send_signal(number)
        _, said = script.communicate(timeout=30)
    assert script.returncode == 1
    assert said == "interrupted; finished files are kept, run the same command again to go on\n"
    assert not program.is_running()
