"""Snakemake's notes of what each file was made from, kept through a power cut.

Our files are on the disk when they get their names; what Snakemake notes of them is not, for up to half a minute (ext4, XFS).
After a power cut within it a file would be there without its note, and then Snakemake compares neither parameters nor inputs:
with another configuration the file would be taken for what it says. Here the marker of a job is on the disk before the job
begins, its outputs (also empty ones, which Snakemake makes itself) before their notes, and the notes before the marker goes:
whatever is missing afterwards, the job is done again, and what is noted is there.

Made for Snakemake 9.27. With a database as persistence backend SQLite flushes the notes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.persistence.file import FilePersistence

from ollamake.atomic_write import flush
from ollamake.machine_limits import limit_met


def keep_records() -> None:
    """Have Snakemake flush to the disk what it notes of files, and the files."""
    if not hasattr(FilePersistence._io_write, "flushes"):
        FilePersistence._io_write = _flushing(FilePersistence._io_write)


def _flushing(write: Any) -> Any:
    def write_and_flush(self: FilePersistence, subject: str, value: Any, key: str, *mode: int) -> None:
        path = Path(self._record_path(subject, key))
        try:
            output = Path(key)
            if subject == self._metadata_path and output.is_file():
                flush(output)
                flush(output.parent)
            write(self, subject, value, key, *mode)
            flush(path)
            # A long name is a folder with the rest of it.
            for folder in path.parents:
                flush(folder)
                if folder == Path(subject):
                    break
        except OSError as error:
            # Snakemake would go on without the note, and later take a file for what it may not be.
            named = OSError(error.errno, error.strerror, error.filename or str(path))
            raise WorkflowError(f"{key}: {limit_met(named) or named}") from None

    write_and_flush.flushes = True
    return write_and_flush
