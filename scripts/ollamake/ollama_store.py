"""A folder in Ollama's on-disk format, written so that a server can be started on it or be running on it.

Blobs come first and the manifest last, each under a temporary name outside manifests/ until it is whole, because Ollama
looks at whatever lies there (manifest/manifest.go). A server on the store may sweep blobs that nothing names when another
model is deleted; hence all of them are looked at again once the manifest names them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from ollamake.atomic_write import is_alive, publish
from ollamake.damage import rebuild_command
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.free_disk import require_free_disk
from ollamake.ollama_manifest import Manifest
from ollamake.ollama_name import manifest_path
from ollamake.progress import progress_bar

log = logging.getLogger("ollamake")

_FICLONE = 0x40049409
"""ioctl that shares the blocks of a file (linux/fs.h)."""

_TRIES = 5


class OllamaStore:
    """One store folder; other models in it are not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_blob(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there, with the right size where it is known."""
        path = self.blob_file(digest)
        return path.is_file() and (size is None or path.stat().st_size == size)

    def write(
        self, name: str, manifest: Manifest, gguf: Path, digest: str, adapter: tuple[Path, str] | None = None
    ) -> None:
        """Put a model into the store; ``digest`` is the sha256 of ``gguf``, which is read only if its blob is not there yet.

        ``adapter``: the GGUF of an adapter beside it, and its sha256.

        Raises OllamakeError where the folder cannot be written to, where the GGUF is another than its digest says, and where
        blobs keep vanishing.
        """
        large = [(file, blob, file.stat().st_size) for file, blob in ((gguf, digest), *([adapter] if adapter else []))]
        try:
            for _ in range(_TRIES):
                for file, blob, size in large:
                    self._put_weights(file, blob, size)
                for small, content in manifest.blobs.items():
                    self._put_small(small, content)
                self._publish(self.manifest_file(name), manifest.content)
                whole = all(self.has_blob(blob, size) for _, blob, size in large)
                if whole and all(self.has_blob(small) for small in manifest.blobs):
                    return
                log.info("a server on %s has swept a blob of %s meanwhile; writing it again", self.folder, name)
        except OSError as error:
            raise OllamakeError(
                f"the store {self.folder} cannot be written to ({error}). Expected a folder of your own, or of a server"
                " that runs as you do; a server of another user is reached through its API: ollama.target: server."
            ) from error
        raise OllamakeError(f"blobs of {name} vanish from {self.folder} as soon as they are written; run again.")

    def read(self, name: str) -> dict[str, Any]:
        """Return a model's manifest. Raises OllamakeError if there is none or it is damaged."""
        path = self.manifest_file(name)
        try:
            manifest = json.loads(path.read_bytes())
            manifest["layers"], manifest["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OllamakeError(
                f"the store {self.folder} has no readable manifest of {name} ({path}: {error})"
            ) from error
        return dict(manifest)

    def manifest_file(self, name: str) -> Path:
        """Return where the manifest of a model lies."""
        return self.folder.joinpath("manifests", *manifest_path(name))

    def blob_file(self, digest: str) -> Path:
        """Return where a blob lies; ``digest`` with or without its `sha256:`."""
        return self.folder / "blobs" / f"sha256-{digest.removeprefix('sha256:')}"

    def _put_weights(self, gguf: Path, digest: str, size: int) -> None:
        if self.has_blob(digest, size):
            self._keep_from_sweeping(digest)
            return
        with progress_bar(size, f"sha256 of {gguf.name}") as progress:
            found = sha256_of(gguf, progress.update)
        if found != digest:
            raise OllamakeError(
                f"{gguf} is not the file that was quantized: its sha256 is {found}, its record says {digest}."
                f" Have it made again: {rebuild_command([gguf])}"
            )
        temporary = self._temporary()
        try:
            _link_or_copy(gguf, temporary, size)
            temporary.chmod(0o644)
            publish(temporary, self.blob_file(digest))
        finally:
            temporary.unlink(missing_ok=True)

    def _put_small(self, digest: str, content: bytes) -> None:
        if self.has_blob(digest, len(content)):
            self._keep_from_sweeping(digest)
        else:
            self._publish(self.blob_file(digest), content)

    def _keep_from_sweeping(self, digest: str) -> None:
        """Make a blob look new: a server that starts removes unreferenced blobs older than an hour."""
        try:
            os.utime(self.blob_file(digest))
        except PermissionError:
            # Somebody else's, so somebody else's model names it, and it stays.
            log.info("the blob %s belongs to somebody else and is used as it is", digest)

    def _publish(self, target: Path, content: bytes) -> None:
        temporary = self._temporary()
        try:
            temporary.write_bytes(content)
            temporary.chmod(0o644)
            for attempt in range(_TRIES):
                # A server that deletes a model removes the folders that this left empty.
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    publish(temporary, target)
                    return
                except FileNotFoundError:
                    if attempt == _TRIES - 1 or not temporary.exists():
                        raise
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        """Return a name in blobs/ of the form that Ollama gives its own temporary files, and sweeps when a server starts.

        Until then nobody does: what killed processes of this host have left is removed here.
        """
        blobs = self.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        host = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:4], "big") % 10_000
        for leftover in blobs.glob(f"sha256-{host:04d}" + "[0-9]" * 17):
            if not is_alive(leftover.name[-17:-10]):
                # Another user's, where only they may remove it, is no reason to register nothing.
                with suppress(PermissionError):
                    leftover.unlink(missing_ok=True)
        return blobs / f"sha256-{host:04d}{os.getpid():07d}{int.from_bytes(os.urandom(4), 'big'):010d}"


def _link_or_copy(source: Path, target: Path, size: int) -> None:
    """Put a large file at ``target`` without a second copy of its bytes where the filesystem can.

    It shares the blocks (btrfs, XFS) or, on one filesystem, the file itself. Of a hard link Ollama changes nothing but the
    time, which starts no rule: GGUFs are followed by their records.
    """
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
            return
        except OSError as error:
            log.debug("blocks of %s cannot be shared: %s", source, error)
    target.unlink()
    try:
        target.hardlink_to(source.resolve())
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
    require_free_disk(target.parent, size, f"the copy of {source.name} in the store")
    # copy_file_range or sendfile underneath: the bytes do not pass through Python.
    shutil.copyfile(source, target)
