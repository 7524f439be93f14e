"""sha256 of files, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

CHUNK = 8 << 20
"""Bytes read at once: large enough for a disk to stream, small enough to stay out of the way."""


def sha256_of(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return the lower-case hexadecimal sha256 of a file; ``advance`` is told the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
