"""A build that runs, seen from outside: its jobs, their processes, and signals to one of them (Linux)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dag_build import Build
from snakemake_runs import snakemake_command

_MARK = "OLLAMAKE_TEST_OF_FAULTS"
_LOG_OF_JOB = re.compile(r"\blogs/(\w+)/\S+")
SECONDS = 0.01
"""Between two looks at the processes."""


@dataclass(frozen=True)
class Job:
    """A job that runs: the process that Snakemake started for it, its rule, and its log."""

    pid: int
    rule: str
    log: str

    def is_there(self) -> bool:
        """Whether it still runs: a process that has ended has no command line any more."""
        with suppress(OSError):
            return bool(Path(f"/proc/{self.pid}/cmdline").read_bytes())
        return False


class RunningBuild:
    """`snakemake --cores 1 all` in a session of its own, with what it prints in ``output``; ended with the block."""

    def __init__(self, build: Build, output: Path, *arguments: str, **environment: str) -> None:
        self.output = output
        self._left_alone = False
        self._mark = uuid.uuid4().hex
        command = snakemake_command(
            "--configfile", "mine.yaml", "--cores", "1", *(arguments or ("all",)), folder=build.folder
        )
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=build.folder,
                env={**os.environ, _MARK: self._mark, **environment},
                start_new_session=True,
            )

    def __enter__(self) -> RunningBuild:
        return self

    def leave(self) -> None:
        """Let what is left of the run go on when the block is over."""
        self._left_alone = True

    def __exit__(self, *_: object) -> None:
        if self._left_alone and self.process.poll() is not None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def job(self) -> Job | None:
        """Return the job that runs, of which there is one at a time."""
        for pid in children_of(self.process.pid):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                # The shell has the log in its words, and the script after it has taken its place in its output.
                found = _LOG_OF_JOB.search(command) or _LOG_OF_JOB.search(_log_of(pid))
                if found:
                    return Job(pid, found[1], found[0])
        return None

    def processes(self) -> list[int]:
        """Return the processes that are there of this run, whoever their parents are now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    mark = f"{_MARK}={self._mark}".encode()
                    if mark in (entry / "environ").read_bytes() and not _is_zombie(entry):
                        found.append(int(entry.name))
        return found

    def wait_until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so, the run is over, or that many seconds have passed; return whether it is so."""
        deadline = time.monotonic() + seconds
        while not (so := reached()) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(SECONDS)
        return so

    def wait_until_next_job(self, pid: int, seconds: float) -> bool:
        """Wait until another job runs than that of ``pid``; return False when the run is over instead."""
        return self.wait_until(lambda: (job := self.job()) is not None and job.pid != pid, seconds)

    def wait_for_end(self, seconds: float) -> int | None:
        """Return the exit code, None if it has not ended then."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def left_after(self, seconds: float) -> list[int]:
        """Return the processes that are still there so many seconds later."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def children_of(pid: int) -> list[int]:
    """Return the children of a process, by whichever thread of its they were started; none if it has gone."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def tree_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(below for child in children_of(pid) for below in tree_of(child))]


def name_of(pid: int) -> str:
    """Return what a process is, in a word: the script that it runs, or its program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    script = next((Path(word).name for word in command[1:3] if word.endswith(".py")), None)
    return script or Path(command[0]).name


def _log_of(pid: int) -> str:
    """Return what the tee beside a script writes to: the log of the job."""
    return " ".join(
        Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        for child in children_of(pid)
        if name_of(child) == "tee"
    )


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
