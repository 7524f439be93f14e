"""Is there room? Asked before a large file is begun, not noticed when the disk is full."""

from __future__ import annotations

import shutil
from pathlib import Path

from ollamake.errors import OllamakeError

MARGIN = 100_000_000
"""Bytes left free beside the file: logs, records and other people's work."""


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the filesystem of ``folder``, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def same_filesystem(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, are or will be on one filesystem."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def require_free_disk(folder: Path, needed: int, what: str) -> None:
    """Raise OllamakeError unless ``needed`` bytes (and a margin) are free where ``folder`` is."""
    free = free_bytes(folder)
    if free < needed + MARGIN:
        raise OllamakeError(
            f"not enough disk for {what}: it needs {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free"
            f" (0.1 GB of which stay free). Make room, run with `--directory` on a larger disk, quantize to fewer"
            " types, or set keep.merged and keep.unquantized to false so that intermediate files go when they are used."
        )


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the folder nearest above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
