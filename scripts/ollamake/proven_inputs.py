"""Files that a job reads are proven to be what their records say while it reads them, before its result is published.

A program of llama.cpp, or transformers, reads a file of many GB itself, and takes a flipped bit for a weight. The sha256 of all
of it is the only proof. It is taken by a thread while the program reads the same pages: one core for 2 to 3 s a GB, next to no
disk, where conversion, quantization and measurement take far longer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.damage import DamagedFile
from ollamake.file_digest import sha256_of


@dataclass(frozen=True)
class Recorded:
    """A file and the sha256 that its record has."""

    path: Path
    sha256: str
    targets: tuple[Path, ...] = ()
    """What has to be removed so that the file is made again, where it is not the output of a job itself."""

    @classmethod
    def by(cls, path: Path, record: Mapping[str, Any]) -> Recorded:
        """Return the file whose record has ``sha256``."""
        return cls(path, str(record["sha256"]))

    def damage(self, digest: str) -> DamagedFile | None:
        """Return what is wrong with a file of this sha256; None if it is the recorded one."""
        if digest == self.sha256:
            return None
        return DamagedFile(self.path, f"its sha256 is {digest}, its record says {self.sha256}", self.targets)


@contextmanager
def proven(files: Iterable[Recorded]) -> Iterator[None]:
    """Run the block while the files are hashed; raise DamagedFile behind it if one is not what its record says.

    Where the block itself fails and a file is damaged, the damage is told: it is why. An interrupted block waits for nothing.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, "prove") as thread:
        found = thread.submit(_first_damage, list(files), stop)
        try:
            yield
        except Exception as error:
            if damage := found.result():
                raise damage from error
            raise
        except BaseException:
            stop.set()
            raise
        if damage := found.result():
            raise damage


def require_proven(files: Iterable[Recorded]) -> None:
    """Raise DamagedFile if one of the files is not what its record says; where nothing else may run beside."""
    if damage := _first_damage(list(files), threading.Event()):
        raise damage


class _Stopped(Exception):
    """The job was interrupted."""


def _first_damage(files: list[Recorded], stop: threading.Event) -> DamagedFile | None:
    def advance(_: int) -> None:
        if stop.is_set():
            raise _Stopped

    for file in files:
        try:
            digest = sha256_of(file.path, advance)
        except _Stopped:
            return None
        except OSError as error:
            return DamagedFile(file.path, f"it cannot be read ({error})", file.targets)
        if damage := file.damage(digest):
            return damage
    return None
