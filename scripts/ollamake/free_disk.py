"""Is there room? Asked before a large file is begun, not noticed when the disk is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ollamake.errors import OllamakeError

MARGIN = 100_000_000
"""Bytes left free beside the file: logs, records and other people's work."""

_NOTES = 100_000
"""Bytes that Snakemake writes at least in a run: its log, and what it knows of each file."""


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


def require_writable(folder: Path) -> None:
    """Raise OllamakeError unless a folder, which is made if need be, takes some KB of notes."""
    probe = folder / f".room.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(_NOTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OllamakeError(
            f"{folder.absolute()} takes no file of {_NOTES // 1000} KB ({error.strerror}; {free_bytes(folder) / 1e9:.2f} GB are"
            " free there). Expected room for the notes of a run, and the right to write them: make room, mend the permissions or"
            " how the disk is mounted, or run with `--directory` elsewhere. What is finished is kept: run the same command again"
            " to go on."
        ) from error


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the folder nearest above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
