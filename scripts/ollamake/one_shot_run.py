"""Snakemake as a child: alone in its folder, told of every signal, and resumed where an earlier one was killed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ollamake.errors import OllamakeError

log = logging.getLogger("ollamake")

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Turn:
    """The right to build in a folder: the descriptor of its lock, and whether the last one who had it was killed."""

    lock: int
    last_was_killed: bool


@contextmanager
def alone_in(folder: Path) -> Iterator[Turn]:
    """Hold the lock of a folder, which is made if it is not there. Raises OllamakeError if another build is at work there.

    Snakemake inherits the lock, so it is held as long as one of the two lives.
    """
    path = folder / ".snakemake/one_shot.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OllamakeError(f"--output-dir: {folder} cannot be written to ({error}). Give another folder.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise OllamakeError(
                f"--output-dir: a build is at work in {folder} (process {owner or 'unknown'}). Wait for its end, or end it."
            ) from None
        was_killed = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield Turn(descriptor, was_killed)
        # Not in a `finally`: what did not come to its end is to be seen.
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def run_snakemake(arguments: Sequence[str], folder: Path, turn: Turn) -> int:
    """Run Snakemake in ``folder``, tell it and its jobs of signals, and return its exit code.

    What it says goes where this process says things. A build that was killed leaves Snakemake's lock behind, which is taken
    away.
    """
    if turn.last_was_killed and any((folder / ".snakemake/locks").glob("*")):
        log.info("An earlier run was killed here; finished files are kept, and the build goes on.")
        code = _run([*arguments, "--unlock"], folder, turn.lock)
        if code:
            return code
    return _run(arguments, folder, turn.lock)


def run_dry(arguments: Sequence[str], folder: Path) -> int:
    """Run Snakemake in ``folder`` where it only looks: it may do so beside a build."""
    return _run([*arguments, "--dry-run"], folder, None)


def _run(arguments: Sequence[str], folder: Path, lock: int | None) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    # What is ignored, as SIGHUP under nohup, stays so; the child inherits that.
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    heard = [number for number in _FORWARDED if before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, forward)
    try:
        # A process group of its own: a terminal's Ctrl-C comes once, through here, and reaches the jobs as well.
        child = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            process_group=0,
            pass_fds=() if lock is None else (lock,),
        )
        for number in early:
            forward(number, None)
        code = child.wait()
    finally:
        for number in heard:
            signal.signal(number, before[number])
    return code if code >= 0 else 128 - code


def _environment() -> dict[str, str]:
    """Return the environment with this Python as `python`: jobs call it by that name, activated or not."""
    found = shutil.which("python")
    own = Path(sys.executable).parent
    if (found and Path(found).parent == own) or not shutil.which(own / "python"):
        return dict(os.environ)
    return {**os.environ, "PATH": os.pathsep.join([str(own), os.environ.get("PATH", os.defpath)])}
