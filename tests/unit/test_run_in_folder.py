"""Who is at work in a folder, what a killed run has left there, and that jobs end with their run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from snakemake_runs import REPOSITORY

from ollamake.run_in_folder import LOCK, end, left_jobs

ENTER = """
from pathlib import Path
from ollamake.run_in_folder import enter, name_run
name_run(Path())
print(*enter(Path()), sep="|", flush=True)
input()
"""
JOB = """
import sys, time
from ollamake.errors import run
def main():
    print("at work", flush=True)
    time.sleep(60)
run(main)
"""
START_JOB = """
import subprocess, sys
from pathlib import Path
from ollamake.run_in_folder import name_run
name_run(Path())
subprocess.run([{shell}sys.executable, "-c", {job!r}]{end})
"""


@contextmanager
def python(program: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program in a folder, and give it and the first line that it says."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def killed(program: str, folder: Path) -> None:
    with python(program, folder) as (child, _):
        child.kill()


def becomes(so: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (now := so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return now


# -- who is there


def test_the_first_is_alone_and_the_second_hears_of_it(tmp_path: Path) -> None:
    with python(ENTER, tmp_path) as (first, said):
        assert said == "True|[]"
        with python(ENTER, tmp_path) as (second, said):
            assert said == f"False|['process {first.pid}']"
            with python(ENTER, tmp_path) as (_, said):
                assert said == f"False|['process {first.pid}', 'process {second.pid}']"


def test_after_one_that_was_killed_the_next_is_alone(tmp_path: Path) -> None:
    killed(ENTER, tmp_path)
    for _ in range(2):
        with python(ENTER, tmp_path) as (_, said):
            assert said == "True|[]"


def test_while_one_is_there_another_that_was_killed_changes_nothing(tmp_path: Path) -> None:
    with python(ENTER, tmp_path) as (first, _):
        killed(ENTER, tmp_path)
        with python(ENTER, tmp_path) as (_, said):
            assert said == f"False|['process {first.pid}']"


@pytest.mark.parametrize(
    ("locks", "said"), [(True, "False|['process 7 of node3']"), (False, "True|['process 7 of node3']")]
)
def test_one_on_another_machine_may_be_there_as_long_as_there_are_locks(tmp_path: Path, locks: bool, said: str) -> None:
    """A network filesystem may keep locks of the kernel's to one machine."""
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / LOCK).write_text("node3:7\n", encoding="utf-8")
    if locks:
        (tmp_path / ".snakemake/locks/0.input.lock").write_text("base\n", encoding="utf-8")
    with python(ENTER, tmp_path) as (_, found):
        assert found == said


@pytest.mark.parametrize("content", [b"\0" * 12, b"node3:\0\0\n", b"\xff\xfe"])
def test_what_a_power_cut_left_of_the_lock_is_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").write_text("base\n", encoding="utf-8")
    (tmp_path / LOCK).write_bytes(content)
    with python(ENTER, tmp_path) as (_, said):
        assert said == "True|[]"


def test_a_folder_that_cannot_be_written_to_is_for_snakemake_to_say(tmp_path: Path) -> None:
    (tmp_path / ".snakemake").write_text("not a folder", encoding="utf-8")
    with python(ENTER, tmp_path) as (_, said):
        assert said == "False|[]"


# -- jobs whose run is gone


def starting(job: str, shell: str = "", end: str = "") -> str:
    return START_JOB.format(job=job, shell=shell, end=end)


def jobs_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(run.pid).children(recursive=True)


def test_a_job_ends_when_its_run_is_killed(tmp_path: Path) -> None:
    with python(starting(JOB), tmp_path) as (run, said):
        assert said == "at work"
        (job,) = jobs_of(run)
        assert left_jobs(tmp_path) == []
        run.kill()
        run.wait()
        assert becomes(lambda: not job.is_running())


def test_a_job_ends_when_the_shell_before_it_is_killed(tmp_path: Path) -> None:
    # The shell stays: the job is not the last that it does.
    shell = '"bash", "-c", \'"$@"; true\', "-", '
    with python(starting(JOB, shell), tmp_path) as (run, said):
        assert said == "at work"
        bash, job = jobs_of(run)
        bash.kill()
        assert becomes(lambda: not job.is_running())
        assert becomes(lambda: run.poll() is not None)


def test_a_program_that_does_not_end_by_itself_is_found_and_ended(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('at work', flush=True); time.sleep(60)"
    with python(starting(deaf), tmp_path) as (run, said):
        assert said == "at work"
        (job,) = jobs_of(run)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert left_jobs(tmp_path / "other") == []
        assert left_jobs(tmp_path) == [job]
        end([job], seconds=0.2)
        assert not job.is_running()
        assert left_jobs(tmp_path) == []


def test_by_hand_a_script_does_not_look_for_a_run(tmp_path: Path) -> None:
    with python(JOB, tmp_path) as (script, said):
        assert said == "at work"
        assert psutil.Process(script.pid).num_threads() == 1
        script.terminate()
        assert script.wait(10) == 1
