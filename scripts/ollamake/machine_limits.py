"""What a machine has run out of, in one message: disk, memory, open files, processes; or its disk fails, or may not be written.

None of it is a defect of ours, and none leaves anything half-made: what was being written is removed, what is finished stays.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Iterable
from pathlib import Path

from ollamake.free_disk import MARGIN, free_bytes

_AGAIN = "What is finished is kept: run the same command again to go on."
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LARGER = "Make room, or run with `--directory` on a larger disk."
_MEMORY = re.compile(
    r"failed to map segment|can't allocate memory|not enough memory|failed to allocate|unable to mmap|Cannot allocate memory"
)
_SAID = re.compile(r"\w+Error: \[Errno (\d+)\] ([^:\n]*)")
_SAID_MEMORY = re.compile(r"(\w+\.)*_?(Array)?MemoryError\b")
"""Last lines of tracebacks."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries (safetensors, tokenizers) say the number of an error."""


def limit_met(error: BaseException) -> str | None:
    """Return what the machine could not give or do, and what to do; None for an error of another kind."""
    if isinstance(error, MemoryError):
        return _no_memory(str(error))
    if isinstance(error, OSError):
        return _of_number(error.errno, error.filename2 or error.filename, error.strerror or str(error))
    if found := _OS_ERROR.search(str(error)):
        return _of_number(int(found[1]), None, str(error))
    if isinstance(error, RuntimeError | ImportError) and _MEMORY.search(str(error)):
        return _no_memory(str(error).splitlines()[0])
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return _no_processes()
    return None


def limit_said(lines: Iterable[str], output: Path) -> str | None:
    """Return :func:`limit_met` of the error with which a Python program ended that wrote ``output``, by what it said."""
    for line in reversed(list(lines)):
        if found := _SAID.match(line):
            return limit_met(OSError(int(found[1]), found[2], str(output)))
        if _SAID_MEMORY.match(line):
            return _no_memory(line.strip())
    return None


def child_hint(returncode: int, folder: Path) -> str:
    """Return what may have ended a program that wrote to a folder, as the end of a message; nothing if nothing is known.

    To be asked before what it has written is removed: only then is a full disk still full.
    """
    if returncode == -signal.SIGXFSZ:
        return f"\nIt was ended by {_file_size()} {_AGAIN}"
    if returncode == -signal.SIGKILL:
        return (
            "\nIt was killed (SIGKILL). If nobody did that, the system was short of memory: free some, and run again."
        )
    free = free_bytes(folder)
    if free < MARGIN:
        return f"\nThe disk of {folder} is full: {_gigabytes(free)} are free. {_LARGER} {_AGAIN}"
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return f"\nIt runs under {_file_size()} {_AGAIN}" if largest != resource.RLIM_INFINITY else ""


def _of_number(number: int | None, file: str | bytes | int | None, said: str) -> str | None:
    path = Path(os.fsdecode(file)) if isinstance(file, str | bytes) else None
    where = path or "a file"
    if number in _FULL:
        free = f" ({_gigabytes(free_bytes(path.parent))} are free)" if path else ""
        quota = ", by your quota" if number == errno.EDQUOT else ""
        return f"no room on the disk{quota} for {where}{free}. {_LARGER} {_AGAIN}"
    if number == errno.EFBIG:
        return f"{where} may not become as large as it must, by {_file_size()} {_AGAIN}"
    if number == errno.EIO:
        return (
            f"the disk failed at {where}, or at what it is made from ({said}). That is a fault of the disk, its cable or its"
            " server, of which the system's log (`dmesg`) tells more; run with `--directory` on another disk."
            f" {_AGAIN}"
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) and path is not None:
        return (
            f"{where} cannot be opened or written ({said}). Expected files that this user may read, and a folder that it may"
            f" write to: mend its permissions or how its disk is mounted, or run with `--directory` elsewhere. {_AGAIN}"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many open files: this process may have {most}. Raise it: `ulimit -n 4096`. {_AGAIN}"
    if number == errno.ENOMEM:
        return _no_memory(said)
    if number == errno.EAGAIN:
        return _no_processes()
    return None


def _no_memory(said: str) -> str:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    limit = (
        f"this process may have {_gigabytes(most)} of addresses (`ulimit -v`), which is raised by `ulimit -v unlimited`"
        if most != resource.RLIM_INFINITY
        else "end other programs, give fewer jobs at a time (`--cores`, `--resources mem_mb=..`), or take a larger machine"
    )
    return f"not enough memory{f' ({said})' if said else ''}: {limit}. {_AGAIN}"


def _no_processes() -> str:
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limit = "the system's limit" if most == resource.RLIM_INFINITY else f"{most} (`ulimit -u`)"
    return f"no more processes or threads can be started: this user may have {limit}. End some, or raise it. {_AGAIN}"


def _file_size() -> str:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    limit = (
        "the filesystem's largest size of a file"
        if most == resource.RLIM_INFINITY
        else f"a limit of {most} bytes a file"
    )
    return f"{limit}: `ulimit -f unlimited` raises what is the shell's, another disk (`--directory`) what is the filesystem's."


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
