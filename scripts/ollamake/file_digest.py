"""sha256 of files, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 8 << 20
"""Bytes read at once: large enough for a disk to stream, small enough to stay out of the way."""


def tree_sha256(folder: Path) -> str:
    """Return one sha256 of all files below a folder, by name and content; what Python compiles beside them does not count."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).as_posix()):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def state_of(path: Path) -> dict[str, Any]:
    """Return path, size, mtime_ns and sha256 of a file."""
    status = path.stat()
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_of(path)}


def sha256_of(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return the lower-case hexadecimal sha256 of a file; ``advance`` is told the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
