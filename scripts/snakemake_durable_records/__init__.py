"""Snakemake's notes of what each file was made from, kept through a power cut.

Our files are on the disk when they get their names; what Snakemake notes of them is not, for up to half a minute (ext4, XFS).
After a power cut within it a file would be there without its note, and then Snakemake compares neither parameters nor inputs:
with another configuration the file would be taken for what it says. Here the marker of a job is on the disk before the job
begins, and the note before the marker goes; so whichever is missing afterwards, the job is done again.

Made for Snakemake 9.27; with its database as persistence backend SQLite does the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snakemake.persistence.file import FilePersistence

from ollamake.atomic_write import flush_folder


def keep_records() -> None:
    """Have Snakemake flush each of its notes and markers to the disk."""
    if not hasattr(FilePersistence._io_write, "flushes"):
        FilePersistence._io_write = _flushing(FilePersistence._io_write)


def _flushing(write: Any) -> Any:
    def write_and_flush(self: FilePersistence, subject: str, value: Any, key: str, *mode: int) -> None:
        write(self, subject, value, key, *mode)
        path = Path(self._record_path(subject, key))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # A long name is a folder with the rest of it.
        while path != Path(subject):
            path = path.parent
            flush_folder(path)

    write_and_flush.flushes = True
    return write_and_flush
