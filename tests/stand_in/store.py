"""Ollama's folder of models: blobs, manifests and what removes them (manifest/, server/images.go, server/routes.go)."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from go_text import file_error, go_json
from model_name import Name

log = logging.getLogger("ollama-0.33")

IMAGE = "application/vnd.ollama.image."
MODEL = IMAGE + "model"
CONFIG = "application/vnd.docker.container.image.v1+json"
CHUNK = 1 << 20
_GRACE_SECONDS = 3600


class InvalidDigest(Exception):
    """No digest that can be a blob's name."""


class FileTrouble(Exception):
    """An operation on a file failed; the text is Go's."""

    def __init__(self, operation: str, path: Path, error: OSError) -> None:
        super().__init__(file_error(operation, path, error))
        self.is_missing = error.errno == errno.ENOENT


@dataclass
class Layer:
    """One blob of a manifest."""

    media_type: str
    digest: str
    size: int
    source: str = ""
    status: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the layer in the order of manifest.Layer's fields."""
        fields = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return fields | ({"from": self.source} if self.source else {})


@dataclass(frozen=True)
class Manifest:
    """One manifest file as it was read."""

    path: Path
    config: Layer
    layers: list[Layer]
    digest: str
    modified: int
    """Nanoseconds since 1970."""

    @property
    def all_layers(self) -> list[Layer]:
        """The layers and the config."""
        return [*self.layers, self.config]


class Store:
    """The folder that OLLAMA_MODELS names. ``room`` bounds the bytes of its blobs, to play a disk that gets full."""

    def __init__(self, folder: Path, room: int | None = None) -> None:
        self.blobs = folder / "blobs"
        self.manifests = folder / "manifests"
        self._room = room
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Return a blob's path; ``digest`` with `sha256:` or `sha256-`. Raises InvalidDigest."""
        if not re.fullmatch(r"sha256[:-][0-9a-fA-F]{64}", digest):
            raise InvalidDigest
        return self.blobs / digest.replace(":", "-")

    def temporary(self, prefix: str) -> Path:
        """Return a new empty file of blobs/ whose name is the prefix and digits, as Go makes them."""
        while True:
            path = self.blobs / f"{prefix}{int.from_bytes(os.urandom(4))}"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except FileExistsError:
                continue
            return path

    def add(self, chunks: Iterable[bytes], media_type: str) -> Layer:
        """Store content under its digest. Raises FileTrouble; what the chunks raise goes through, the file is removed."""
        temporary = self.temporary("sha256-")
        try:
            digest, size = hashlib.sha256(), 0
            with temporary.open("wb", buffering=0) as file:
                for chunk in chunks:
                    self._write(file.fileno(), temporary, chunk)
                    digest.update(chunk)
                    size += len(chunk)
            name = f"sha256:{digest.hexdigest()}"
            blob = self.blob(name)
            status = "using existing layer"
            if not blob.exists():
                status = "creating new layer"
                temporary.rename(blob)
                blob.chmod(0o644)
            os.utime(blob)
        finally:
            temporary.unlink(missing_ok=True)
        return Layer(media_type, name, size, status=f"{status} {name}")

    def add_text(self, text: str, kind: str) -> Layer:
        """Store a small layer."""
        return self.add([text.encode("utf-8", "replace")], kind if "/" in kind else IMAGE + kind)

    def add_file(self, path: Path, media_type: str) -> Layer:
        """Store a copy of a file."""
        return self.add(_chunks(path), media_type)

    def reuse(self, digest: str, media_type: str, source: str) -> Layer:
        """Return a layer of a blob that is there. Raises FileTrouble if it is not."""
        blob = self.blob(digest)
        try:
            os.utime(blob)
            size = blob.stat().st_size
        except OSError as error:
            raise FileTrouble("stat", blob, error) from error
        return Layer(media_type, digest, size, source, f"using existing layer {digest}")

    def existing_name(self, name: Name) -> Name:
        """Return the name with each part in the case that any manifest has it in."""
        parts = list(name)
        for other in self.all():
            parts = [theirs if theirs.lower() == own.lower() else own for own, theirs in zip(parts, other, strict=True)]
        return Name(*parts)

    def manifest_path(self, name: Name) -> Path:
        """Return where a model's manifest lies."""
        return self.manifests.joinpath(*name)

    def manifest(self, name: Name) -> Manifest:
        """Read a manifest. Raises FileTrouble if there is none, ValueError if it is damaged."""
        path = self.manifest_path(name)
        try:
            content, modified = path.read_bytes(), path.stat().st_mtime_ns
        except OSError as error:
            raise FileTrouble("open", path, error) from error
        if not content.strip():
            raise ValueError("EOF")
        try:
            fields = json.loads(content)
            config, *layers = (_layer(item) for item in [fields.get("config") or {}, *(fields.get("layers") or [])])
        except (ValueError, AttributeError, TypeError):
            raise ValueError("unexpected EOF") from None
        return Manifest(path, config, layers, _manifest_digest(content), modified)

    def all(self) -> dict[Name, Manifest]:
        """Read all manifests; damaged ones and files of other names are left out."""
        return {name: manifest for name, manifest in self._found() if name is not None and manifest is not None}

    def write_manifest(self, name: Name, config: Layer, layers: list[Layer]) -> None:
        """Write a manifest as Ollama does: over the old one, which is gone from the first moment on."""
        path = self.manifest_path(name)
        fields = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config.as_json(),
            "layers": [layer.as_json() for layer in layers],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            self._write(file.fileno(), path, f"{go_json(fields)}\n".encode())

    def remove_manifest(self, manifest: Manifest) -> None:
        """Remove a manifest and every folder of manifests/ that is empty then."""
        manifest.path.unlink()
        self._remove_empty_folders()

    def remove_unused(self, layers: Iterable[Layer]) -> None:
        """Remove the blobs of layers that no manifest has."""
        used = {layer.digest for manifest in self.all().values() for layer in manifest.all_layers}
        for layer in layers:
            if layer.digest and layer.digest not in used:
                self.blob(layer.digest).unlink(missing_ok=True)

    def prune(self) -> None:
        """Remove what is older than an hour and nothing refers to, as at a start; nothing if a manifest is damaged."""
        if any(name is None or manifest is None for name, manifest in self._found()):
            log.warning("corrupt manifests detected, skipping prune operation.  Re-pull or delete to clear")
            return
        used = {layer.digest for manifest in self.all().values() for layer in manifest.all_layers}
        for blob in [path for path in self.blobs.iterdir() if path.is_file()]:
            old = time.time() - blob.stat().st_mtime >= _GRACE_SECONDS
            if old and blob.name.replace("-", ":") not in used:
                blob.unlink()
        self._remove_empty_folders()
        self.manifests.mkdir(exist_ok=True)

    def _found(self) -> Iterator[tuple[Name | None, Manifest | None]]:
        for path in self.manifests.glob("*/*/*/*"):
            if path.is_dir():
                continue
            name = Name(*path.relative_to(self.manifests).parts)
            if not name.is_valid:
                yield None, None
                continue
            try:
                yield name, self.manifest(name)
            except (FileTrouble, ValueError) as error:
                log.warning("bad manifest name=%s error=%s", name, error)
                yield name, None

    def _write(self, descriptor: int, path: Path, content: bytes) -> None:
        try:
            if self._room is not None:
                taken = sum(file.stat().st_size for file in self.blobs.iterdir())
                if taken + len(content) > self._room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            while content:
                content = content[os.write(descriptor, content) :]
        except OSError as error:
            raise FileTrouble("write", path, error) from error

    def _remove_empty_folders(self) -> None:
        for folder, _, _ in os.walk(self.manifests, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def _layer(fields: dict[str, Any]) -> Layer:
    return Layer(
        fields.get("mediaType", ""), fields.get("digest", ""), fields.get("size", 0), str(fields.get("from", ""))
    )


def _manifest_digest(content: bytes) -> str:
    """Return the sha256 of what Go's decoder reads: the newline is left out where the JSON just fills its buffer."""
    body = content.rstrip(b"\n")
    fills_buffer = len(body) in {512 * (2**doublings - 1) for doublings in range(1, 12)}
    return hashlib.sha256(body if fills_buffer else content).hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
