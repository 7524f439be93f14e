"""What takes minutes to compile is built once, however many processes need it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import background_builds
import pytest
from snakemake_runs import REPOSITORY

BUILDS_ONCE = """
import sys, time
from pathlib import Path
import background_builds

folder = Path(sys.argv[1])

def build():
    with (folder / "builds").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    (folder / "program").touch()

background_builds.build_once((folder / "program").exists, build, folder)
assert (folder / "program").exists()
"""


def test_processes_that_need_the_same_build_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDS_ONCE, str(tmp_path)]
    path = f"{REPOSITORY / 'tests'}:{REPOSITORY / 'scripts'}"
    processes = [
        subprocess.Popen(command, env={"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert (tmp_path / "builds").read_text() == "x"


def test_who_waits_goes_on_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Somebody else goes on building in the same folder; that is not waited for."""
    program, over = tmp_path / "program", threading.Event()
    built: list[str] = []
    with background_builds.turn_at(tmp_path):
        waiting = threading.Thread(
            target=lambda: (
                background_builds.build_once(program.exists, lambda: built.append("again"), tmp_path),
                over.set(),
            )
        )
        waiting.start()
        assert not over.wait(0.2)
        program.touch()
        assert over.wait(30)
    waiting.join()
    assert built == []


def test_who_fails_leaves_the_turn_to_others(tmp_path: Path) -> None:
    program = tmp_path / "program"

    def fail() -> None:
        raise AssertionError("the compiler says no")

    with pytest.raises(AssertionError, match="the compiler says no"):
        background_builds.build_once(program.exists, fail, tmp_path)
    background_builds.build_once(program.exists, program.touch, tmp_path)
    assert program.exists()
