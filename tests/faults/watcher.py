"""Looks at every file at the moment at which it appears under a final name (inotify(7), so Linux only).

Two things are faults: a file whose content is not whole when its name appears, and a file that is written while it already
has its final name, even if nobody could have read it meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from whole_files import fault_of, is_final

_MODIFY, _MOVED_TO, _CREATE, _OVERFLOW, _IS_FOLDER = 0x2, 0x80, 0x100, 0x4000, 0x40000000
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_HEAD = struct.Struct("iIII")


class Watcher:
    """Watches folders and all below them, also those that are still to come, until the block ends.

    ``faults``: a line for each file that was not whole, or was written in place. ``seen``: how many got a final name;
    ``writes``: how often something was written to a temporary one.
    """

    def __init__(self, *folders: Path) -> None:
        self.faults: list[str] = []
        self.seen = 0
        self.writes = 0
        self._folders = folders
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._names: dict[int, Path] = {}
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._inotify = self._libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._add(folder)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._stopping)
        self._thread.join()
        for descriptor in (self._inotify, self._stop):
            os.close(descriptor)

    def take_faults(self) -> tuple[str, ...]:
        """Return the faults so far, which are then told."""
        told, self.faults = tuple(dict.fromkeys(self.faults)), []
        return told

    def _add(self, folder: Path) -> list[Path]:
        """Watch a folder and those in it, and return the files that were there before they were watched."""
        mask = ctypes.c_uint32(_MODIFY | _MOVED_TO | _CREATE)
        number = self._libc.inotify_add_watch(self._inotify, os.fsencode(folder), mask)
        if number < 0:
            return []  # It has gone again.
        self._names[number] = folder
        found = []
        for entry in list(os.scandir(folder)):
            path = folder / entry.name
            found += self._add(path) if entry.is_dir(follow_symlinks=False) else [path]
        return found

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._inotify, self._stop], [], [])
            if self._inotify in ready:
                for mask, path in self._events():
                    self._hear(mask, path)
            elif ready:
                return

    def _events(self) -> Iterator[tuple[int, Path]]:
        content = os.read(self._inotify, 1 << 16)
        while content:
            number, mask, _, length = _HEAD.unpack_from(content)
            name = content[_HEAD.size : _HEAD.size + length].rstrip(b"\0")
            content = content[_HEAD.size + length :]
            if mask & _OVERFLOW:
                self.faults.append("events were lost: the watcher was too slow")
            elif number in self._names:
                yield mask, self._names[number] / os.fsdecode(name)

    def _hear(self, mask: int, path: Path) -> None:
        if mask & _IS_FOLDER:
            for file in self._add(path):
                self._look(file, "there before its folder was watched")
        elif mask & _MODIFY:
            self.writes += 1
            if is_final(path):
                self.faults.append(f"{path}: written under its final name")
        elif mask & (_MOVED_TO | _CREATE):
            self._look(path, "created" if mask & _CREATE else "renamed")

    def _look(self, path: Path, how: str) -> None:
        if not is_final(path):
            return
        self.seen += 1
        try:
            fault = fault_of(path)
        except FileNotFoundError:
            return
        if fault is not None:
            self.faults.append(f"{path}: {how}, and not whole: {fault}")
