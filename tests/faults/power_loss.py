"""What a disk may hold after the power was lost: the worst that POSIX allows, made from a journal of what programs asked for.

Bytes are there when fsync(2) has said so for their file, names when it has for their folder. Everything else may be there or
not: of a file that was written since, the new bytes are missing or zeros; of a folder, each name that was made, moved or
removed since some moment is as it was before. (ext4 and XFS keep the order of names over all folders; others do not. A new
folder stays, as everywhere, once a file in it is safe.)

Not covered: blocks of one file that arrive out of turn within what was never synced, and disks that lie about their cache.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

Status = tuple[int, str]
"""Size, and time of modification as text, to the nanosecond."""


@dataclass(frozen=True)
class Event:
    """A line of the journal that faulty_writes.c keeps; ``kept``: the name of what it replaced or removed, if anything."""

    kind: str
    path: Path
    other: Path
    inode: int
    status: Status
    kept: str | None


@dataclass
class Disk:
    """A folder, its journal, and where removed files are kept; all on one filesystem."""

    folder: Path
    journal: Path
    kept: Path
    safe: dict[int, Status] = field(default_factory=dict)

    def begin(self) -> None:
        """Take what is there now for safe."""
        self.kept.mkdir(parents=True, exist_ok=True)
        self.journal.write_text("", encoding="utf-8")
        for file in self._files():
            status = file.lstat()
            self.safe[status.st_ino] = _status(status)

    def events(self) -> list[Event]:
        """Return the journal."""
        return [
            _event(line) for line in self.journal.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        ]

    def lose_power(self, choice: random.Random) -> list[str]:
        """Take from the disk what was not yet safe, as chosen; return what was done, a line each.

        Nothing may run in the folder any more.
        """
        events = self.events()
        safe = self._safe_after(events)
        done = [line for file in self._files() if (line := _lose_bytes(file, safe, choice))]
        for event in reversed(_undone(events, choice)):
            done += self._undo(event)
        return done

    def _files(self) -> list[Path]:
        found = [path for top in (self.folder, self.kept) for path in top.rglob("*")]
        return sorted(path for path in found if path.is_file() and not path.is_symlink())

    def _safe_after(self, events: list[Event]) -> dict[int, Status]:
        safe = dict(self.safe)
        untouched: dict[int, bool] = {}
        for event in events:
            if event.kind == "sync":
                safe[event.inode] = event.status
            elif event.kind == "timed":
                untouched[event.inode] = safe.get(event.inode) == event.status
            elif event.kind == "time" and untouched.pop(event.inode, False):
                safe[event.inode] = event.status
            elif event.kind == "everything":
                for file in self._files():
                    status = file.lstat()
                    if _nanoseconds(_status(status)) <= _nanoseconds(event.status):
                        safe[status.st_ino] = _status(status)
        # The end came while a time was being set, which may be there by now.
        for file in self._files():
            status = file.lstat()
            if untouched.get(status.st_ino) and safe[status.st_ino][0] == status.st_size:
                safe[status.st_ino] = _status(status)
        return safe

    def _undo(self, event: Event) -> list[str]:
        old = self.kept / event.kept if event.kept else None
        path = event.other if event.kind == "rename" else event.path
        if event.kind in ("create", "rename") and not (path.exists() or path.is_symlink()):
            return []
        if event.kind == "create":
            path.unlink()
        elif event.kind == "mkdir":
            if not path.is_dir() or any(path.iterdir()):
                return []
            path.rmdir()
        elif event.kind == "rename":
            if event.path.parent.is_dir():
                path.rename(event.path)
            else:
                path.unlink()
            if old is not None:
                os.link(old, path)
        elif event.kind == "rmdir":
            path.mkdir(parents=True, exist_ok=True)
        elif old is not None and not path.exists() and path.parent.is_dir():
            os.link(old, path)
        else:
            return []
        return [f"undone: {event.kind} {self._shown(event.path)}{_arrow(event, self)}"]

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)


def _undone(events: list[Event], choice: random.Random) -> list[Event]:
    """Choose what of the names is not there: in each folder, everything after some moment since it was synced last."""
    waiting: dict[Path, list[tuple[int, Event]]] = defaultdict(list)
    for number, event in enumerate(events):
        if event.kind == "everything":
            waiting.clear()
        elif event.kind == "sync":
            waiting.pop(event.path, None)
        elif event.kind in ("create", "mkdir", "rename", "unlink", "rmdir"):
            waiting[(event.other if event.kind == "rename" else event.path).parent].append((number, event))
    undone = []
    for folder in sorted(waiting):
        undone += waiting[folder][choice.randint(0, len(waiting[folder])) :]
    return [event for _, event in sorted(undone, key=lambda entry: entry[0])]


def _lose_bytes(file: Path, safe: dict[int, Status], choice: random.Random) -> str | None:
    """Take from a file what was written since it was safe; None if nothing was."""
    status = file.lstat()
    known = safe.get(status.st_ino)
    if known == _status(status) or status.st_size == 0:
        return None
    begin = min(known[0], status.st_size) if known else 0
    begin = 0 if begin == status.st_size else begin
    how = choice.choice(["missing", "zeros", "missing", "zeros", "there after all"])
    if how == "missing":
        os.truncate(file, begin)
    elif how == "zeros":
        os.truncate(file, begin)
        os.truncate(file, status.st_size)
    # Only the bytes are lost: the time came with the name.
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"bytes {begin} to {status.st_size} of {file}: {how}"


def _arrow(event: Event, disk: Disk) -> str:
    return f" -> {disk._shown(event.other)}" if event.kind == "rename" else ""


def _status(status: os.stat_result) -> Status:
    return status.st_size, f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}"


def _nanoseconds(status: Status) -> int:
    return int(status[1].replace(".", ""))


def _event(line: str) -> Event:
    kind, path, other, inode, size, time, kept = line.split("\t")
    return Event(kind, Path(path), Path(other), int(inode), (int(size), time), None if kept.endswith(".0") else kept)
