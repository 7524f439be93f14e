"""One file of the hub: linked from the cache of huggingface_hub, else downloaded, and gone on with where it was interrupted.

What is there of a file lies beside it as NAME.partial. Its lock is on the partial itself (flock(2)), so nothing else is left.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from ollamake.atomic_write import FlushBehind, publish, write_link
from ollamake.errors import OllamakeError
from ollamake.file_digest import CHUNK
from ollamake.free_disk import require_free_disk
from ollamake.hub_cache import blob_of, whole_blob_of
from ollamake.hub_content import Content, content_of
from ollamake.hub_faults import HubUnreachable, RevisionGone
from ollamake.hub_offline import not_here, revision_gone
from ollamake.hub_requests import HubRepository, Patience
from ollamake.progress import progress_bar
from ollamake.source_files import is_name_in_folder

log = logging.getLogger("ollamake")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What filesystems without flock(2) say."""


@dataclass(frozen=True)
class HubFile:
    """A file of a model's repository."""

    repo_id: str
    name: str
    content: Content


def hub_file(record: dict[str, Any]) -> HubFile:
    """Return the file of {"repo", "name", "size", "sha256" or "git_sha1"}. Raises OllamakeError for anything else."""
    try:
        name = record["name"]
        if not is_name_in_folder(name):
            raise ValueError(f"{name!r} is not the name of a file in a repository's top folder")
        return HubFile(record["repo"], name, content_of(record))
    except (ValueError, TypeError, KeyError) as error:
        raise OllamakeError(
            f"expected a file of the hub as {{repo, name, size, sha256 or git_sha1}}, found {record!r} ({error})."
        ) from error


def fetch_file(
    file: HubFile, commit: str, output: Path, *, endpoint: str | None = None, patience: Patience | None = None
) -> None:
    """Make ``output`` the file at a commit: a link into huggingface_hub's cache, or downloaded; of the right digest.

    What was downloaded before an interruption is kept beside it and not downloaded again. Raises OllamakeError.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if _is_whole(file, output) or _link_from_cache(file, output):
        _partial_of(output).unlink(missing_ok=True)
        return
    hub = HubRepository(file.repo_id, endpoint=endpoint, patience=patience)
    try:
        with _own_partial(file, output) as partial:
            if partial is not None:
                _download(file, commit, hub, partial, output)
    except RevisionGone as error:
        raise revision_gone(file.repo_id, commit) from error
    except HubUnreachable as error:
        raise not_here(f"{file.repo_id}, {file.name}", f"this file{_kept(_partial_of(output))}", error) from error


def _partial_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _kept(partial: Path) -> str:
    size = partial.stat().st_size if partial.exists() else 0
    return f" (of which {size} bytes were downloaded and are kept)" if size else ""


def _is_whole(file: HubFile, output: Path) -> bool:
    """Whether the output is there as it should be; another file of that name is replaced when its successor is whole."""
    if not output.is_file() or output.stat().st_size != file.content.size:
        return False
    with progress_bar(file.content.size, f"checking {file.name}") as bar:
        fault = file.content.fault(output, bar.update)
    return fault is None


def _link_from_cache(file: HubFile, output: Path) -> bool:
    if blob_of(file.repo_id, file.content) is None:
        return False
    with progress_bar(file.content.size, f"checking {file.name}") as bar:
        blob = whole_blob_of(file.repo_id, file.content, bar.update)
    if blob is None:
        return False
    write_link(output, blob)
    log.info("%s: %s is in the cache of huggingface_hub and whole: linked", file.repo_id, file.name)
    return True


@contextmanager
def _own_partial(file: HubFile, output: Path) -> Iterator[FileIO | None]:
    """Yield the partial of a file, locked; None where another run has made the file whole meanwhile."""
    path = _partial_of(output)
    while True:
        # Open for appending, so what is there is kept; unbuffered, so what was taken is in the file whatever happens.
        with path.open("a+b", buffering=0) as partial:
            _lock(partial, path)
            # Whoever had it before may have given it its final name, or removed it: then this is no longer the partial.
            if _is_at(path, partial):
                yield partial
                return
        if _is_whole(file, output):
            yield None
            return


def _is_at(path: Path, opened: FileIO) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(partial: FileIO, path: Path) -> None:
    try:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another run is downloading to %s; waiting for it", path)
            fcntl.flock(partial, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("warning: %s cannot be locked (%s): no other run must download it now", path, error.strerror)


def _download(file: HubFile, commit: str, hub: HubRepository, partial: FileIO, output: Path) -> None:
    """Complete the partial, check it and give it its name; where its digest is wrong, once from the beginning."""
    path = _partial_of(output)
    for is_last in (False, True):
        had = min(partial.seek(0, os.SEEK_END), file.content.size)
        require_free_disk(output.parent, file.content.size - had, f"{file.name} of {file.repo_id}")
        with _Receiver(file, partial, path) as receiver:
            hub.stream(file.name, commit, receiver)
            fault = receiver.fault()
        if fault is None:
            publish(path, output)
            log.info(
                "%s: %s is whole, its %s as pinned (%.2f GB%s)",
                file.repo_id,
                file.name,
                file.content.kind,
                file.content.size / 1e9,
                f", of which {had / 1e9:.2f} were here before" if had else "",
            )
            return
        if is_last:
            path.unlink()
            raise OllamakeError(
                f"{file.repo_id}: wrong bytes were sent for {file.name}, twice: {fault}. They were removed. Run again; if it"
                " stays so, HF_ENDPOINT or a proxy between this machine and the hub changes files."
            )
        log.warning("warning: %s of %s: %s; downloading it from the beginning", file.name, file.repo_id, fault)
        partial.truncate(0)


class _Receiver:
    """Writes and hashes what comes of a file; to be used as a context manager.

    A partial that is there is hashed first, or emptied where it is longer than the file.
    """

    def __init__(self, file: HubFile, partial: FileIO, path: Path) -> None:
        self.size = file.content.size
        self.position = 0
        self._file = file
        self._partial = partial
        self._path = path
        self._bar: Any = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._hash = self._file.content.hash()
        self._flush = FlushBehind(self._partial)

    def __enter__(self) -> _Receiver:
        there = self._partial.seek(0, os.SEEK_END)
        if there > self.size:
            self._partial.truncate(0)
        elif there:
            log.info("%s: %d of %d bytes are here already", self._file.name, there, self.size)
            self._partial.seek(0)
            with progress_bar(there, f"checking what is here of {self._file.name}") as bar:
                while chunk := self._partial.read(CHUNK):
                    self._hash.update(chunk)
                    self.position += len(chunk)
                    bar.update(len(chunk))
        self._bar = progress_bar(self.size, self._file.name, initial=self.position)
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def take(self, piece: bytes) -> None:
        """Write what follows. Raises OllamakeError where the disk is full; what is there is kept."""
        view = memoryview(piece)
        while view:
            try:
                written = self._partial.write(view)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise OllamakeError(
                    f"no room for {self._file.name} of {self._file.repo_id} ({error.strerror}): {self._path} has"
                    f" {self.position / 1e9:.2f} of {self.size / 1e9:.2f} GB, which are kept. Make room, or run with"
                    " `--directory` on a larger disk, and run again: it goes on from there."
                ) from error
            self._hash.update(view[:written])
            self.position += written
            view = view[written:]
        self._flush.written(self.position)
        self._bar.update(len(piece))

    def restart(self) -> None:
        """Forget what is there: it comes once more."""
        self._partial.truncate(0)
        self.position = 0
        self._begin_anew()
        self._bar.reset()

    def fault(self) -> str | None:
        """Return what is wrong with the whole file, None if nothing is."""
        return self._file.content.difference(self._hash)
