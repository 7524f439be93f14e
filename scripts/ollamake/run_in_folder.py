"""One Snakemake at work in a folder: who is there, what a killed one left, and how this one is stopped.

Snakemake's own locks are files. A killed run leaves them, and the next is refused until somebody says --unlock. Here each
Snakemake holds a lock of the kernel's beside them, which goes with the process: whoever has it alone knows that Snakemake's
are of the dead. Where the filesystem has no such locks, or a run may be on another machine, all is as without this.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from ollamake.end_with_run import RUN

LOCK = ".snakemake/ollamake.lock"
SNAKEMAKE_LOCKS = ".snakemake/locks"

SECONDS_TO_END = 10.0
"""That processes have between SIGTERM and SIGKILL."""
SECONDS_OF_THEIR_OWN = 2.0
"""That they have to end by themselves: on Ctrl-C the terminal tells all of them."""

_LINE = re.compile(r"[^\0]+:\d+")

_held: list[int] = []
"""The descriptor of the lock, open until this process ends. Programs that it starts do not inherit it."""


def name_run(folder: Path) -> None:
    """Let the jobs that this process starts know whose they are."""
    os.environ[RUN] = f"{socket.gethostname()}:{os.getpid()}:{folder.resolve()}"


def enter(folder: Path) -> tuple[bool, list[str]]:
    """Say, until this process ends, that it is at work in ``folder``.

    Returns whether it is known that nobody else is, and those who may be, as a sentence has them.
    """
    host = socket.gethostname()
    try:
        (folder / LOCK).parent.mkdir(exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError:
        return False, []  # Nothing can be written here, which Snakemake says.
    _held.append(lock)
    try:
        alone = _is_alone(lock)
    except OSError:
        return False, []  # A network filesystem without locks.
    # After a power cut the file may hold zeros.
    lines = os.pread(lock, 1 << 16, 0).decode(errors="replace").splitlines()
    others = [line.rpartition(":") for line in lines if _LINE.fullmatch(line)]
    elsewhere = [f"process {pid} of {where}" for where, _, pid in others if where != host]
    # Locks may be of one machine only: those of another are not seen then.
    alone = alone and not (elsewhere and has_locks(folder))
    if alone:
        os.ftruncate(lock, 0)
    os.write(lock, f"{host}:{os.getpid()}\n".encode())
    fcntl.flock(lock, fcntl.LOCK_SH)
    return alone, [f"process {pid}" for where, _, pid in others if where == host and _is_there(int(pid))] + elsewhere


def has_locks(folder: Path) -> bool:
    """Whether there are locks of Snakemake's."""
    return any((folder / SNAKEMAKE_LOCKS).glob("*.lock"))


def left_jobs(folder: Path) -> list[psutil.Process]:
    """Return the processes that runs in this folder have started, and that are still there while their run is gone."""
    host, here = socket.gethostname(), str(folder.resolve())
    found = []
    for process in psutil.process_iter():
        try:
            run = process.environ().get(RUN, "").split(":", 2)
        except (psutil.Error, OSError):
            continue  # Somebody else's, or gone.
        if len(run) == 3 and (run[0], run[2]) == (host, here) and not _is_there(int(run[1])):
            found.append(process)
    return found


def end(processes: list[psutil.Process], seconds: float = SECONDS_TO_END) -> None:
    """End processes, those that do not heed SIGTERM for so many seconds by SIGKILL, and wait until they are gone."""
    for process in processes:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, seconds)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, SECONDS_TO_END)


def stop_jobs_on_signals(say: Callable[[str], None]) -> None:
    """Let SIGINT and SIGTERM end the jobs of this process, and then the run: by itself Snakemake waits for them.

    ``say`` is called with the signal's name.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        say(signal.Signals(number).name)
        threading.Thread(target=_end_jobs, daemon=True).start()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def _end_jobs() -> None:
    jobs = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(jobs, SECONDS_OF_THEIR_OWN)
    end(alive)


def _is_alone(lock: int) -> bool:
    """Take the lock, alone if nobody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Whoever is alone is so for an instant.
        fcntl.flock(lock, fcntl.LOCK_SH)
        return False
    return True


def _is_there(pid: int) -> bool:
    """Whether there is a process with that id, maybe another one than was meant."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
