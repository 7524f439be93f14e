"""Files that appear whole or not at all.

A file is written under a temporary name in its own folder (a rename is atomic only within one filesystem),
flushed to the disk, renamed, and the folder is flushed too, so that neither a killed job nor a power cut leaves a
half-made file under a final name (see rename(2) and fsync(2)).
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ollamake.record_seal import sealed_json, sealed_text

_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
"""Flags of sync_file_range."""
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Errors that a file meets which is being written, the last of them one that is being read, too."""
_WINDOW = 32 << 20
"""Bytes that are sent to the disk together."""
_WINDOWS = 3
"""How many of these may be under way: enough that the disk never waits."""


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a program to write to; publish it on a clean exit.

    The temporary file is removed when the block raises. Its name is hidden, ends in ``.tmp`` and carries host and
    process id, so two runs never share one, even on a shared disk; what killed processes of this host left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{host}.*.tmp"):
        if not is_alive(leftover.name.split(".")[-2]):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{host}.{os.getpid()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        # What the system says of an open file does not name it.
        if error.filename is None and error.errno in _OF_WRITING:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file (readable and writable) that becomes ``path`` on a clean exit."""
    with temporary_beside(path) as temporary, temporary.open("w+b") as file:
        yield file
        file.flush()


def publish(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to the disk and rename it to ``path``."""
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def write_link(path: Path, target: Path) -> None:
    """Make ``path`` a symbolic link to the file ``target`` atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.absolute())
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the disk keep a file's bytes, or the names that a folder has now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FlushBehind:
    """Sends a growing file to the disk a window at a time, and lets go of the pages of windows that are there.

    Otherwise a file of many GB pushes everything else out of the page cache, and always writes into fresh pages, which costs
    more than reusing a few. It promises nothing, publish does. Linux only (sync_file_range(2)); elsewhere nothing happens.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = 0
        self._under_way: deque[tuple[int, int]] = deque()

    def written(self, size: int) -> None:
        """Say that the file now has ``size`` bytes."""
        if _SYNC_FILE_RANGE is None or size - self._begun < _WINDOW:
            return
        self._file.flush()
        self._sync(self._begun, size, _WRITE)
        self._under_way.append((self._begun, size))
        self._begun = size
        if len(self._under_way) > _WINDOWS:
            first, last = self._under_way.popleft()
            self._sync(first, last, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
            os.posix_fadvise(self._file.fileno(), first, last - first, os.POSIX_FADV_DONTNEED)

    def _sync(self, first: int, last: int, how: int) -> None:
        _SYNC_FILE_RANGE(self._file.fileno(), ctypes.c_int64(first), ctypes.c_int64(last - first), how)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with open_atomically(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, its line ends untouched."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a record as JSON that is the same bytes for the same value: sorted keys, two blanks, UTF-8, and a seal."""
    write_text(path, sealed_json(value))


def write_sealed_text(path: Path, text: str) -> None:
    """Write a text for people with a seal as its last line."""
    write_text(path, sealed_text(text, path.suffix))


def write_plain_json(path: Path, value: Any) -> None:
    """Write ``value`` as write_json does but without a seal: a file that other programs define."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files below ``folder`` that killed processes of this host have left, and return them.

    The next writer of the same file would; of a file that is there already there is none.
    """
    host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
    removed = []
    for file in folder.rglob(f".*.{host}.*.tmp"):
        if file.is_file() and not is_alive(file.name.split(".")[-2]):
            file.unlink(missing_ok=True)
            removed.append(file)
    return removed


def is_alive(process_id: str) -> bool:
    """Whether a process of this machine has that id; a name that is no number belongs to nobody."""
    if not process_id.isdigit():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
