"""What a file of the hub must hold: its size, and the digest by which git or Git LFS knows it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ollamake.file_digest import CHUNK

_DIGITS = {"sha256": 64, "git_sha1": 40}
"""How a digest is called in records -> its hexadecimal digits."""


class Hash(Protocol):
    """What hashlib's objects can do."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, order=True)
class Content:
    """Size in bytes, and a digest in lower-case hexadecimal: ``kind`` is "sha256" for files in LFS, else "git_sha1"."""

    size: int
    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 0:
            raise ValueError(f"{self.size!r} is not a size")
        if not isinstance(self.digest, str) or not re.fullmatch(f"[0-9a-f]{{{_DIGITS[self.kind]}}}", self.digest):
            raise ValueError(f"{self.digest!r} is not a {self.kind}")

    def hash(self) -> Hash:
        """Return a hash that has seen nothing yet. git hashes a blob's size with it (git-hash-object(1))."""
        if self.kind == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def fault(self, path: Path, advance: Callable[[int], object] | None = None) -> str | None:
        """Return what is wrong with a file that should hold this, None if nothing is. Raises OSError.

        ``advance`` is told the bytes of each chunk that was read.
        """
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size} bytes, not {self.size}"
        found = self.hash()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                if advance is not None:
                    advance(len(chunk))
        return self.difference(found)

    def difference(self, found: Hash) -> str | None:
        """Return how a digest differs from this one, None if it does not."""
        digest = found.hexdigest()
        return None if digest == self.digest else f"its {self.kind} is {digest}, not {self.digest}"

    def record(self) -> dict[str, Any]:
        """Return {"size", "sha256" or "git_sha1"}."""
        return {"size": self.size, self.kind: self.digest}


def content_of(record: Mapping[str, Any]) -> Content:
    """Return what a record says. Raises ValueError, TypeError or KeyError if it is none."""
    kind = "sha256" if "sha256" in record else "git_sha1"
    return Content(record["size"], kind, record[kind])


def content_named(name: str, size: int) -> Content:
    """Return the content of a blob of huggingface_hub's cache, which is named by its digest. Raises ValueError."""
    kinds = {digits: kind for kind, digits in _DIGITS.items()}
    if len(name) not in kinds:
        raise ValueError(f"{name!r} is not a digest")
    return Content(size, kinds[len(name)], name)
