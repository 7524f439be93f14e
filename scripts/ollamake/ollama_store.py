"""A folder in Ollama's on-disk format, written so that a server can be started on it or be running on it.

Layout and manifest: Ollama's manifest/manifest.go, manifest/layer.go, types/model/config.go, in the form of 0.32.7 and
later (no rootfs). Blobs come first and the manifest last, each under a temporary name outside manifests/ until it is
whole, because Ollama looks at whatever lies there. Nothing is hard-linked: the server changes the times of its blobs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType

from ollamake.atomic_write import publish
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.free_disk import require_free_disk
from ollamake.ollama_name import manifest_path

_IMAGE = "application/vnd.ollama.image."
_FICLONE = 0x40049409
"""ioctl that shares the blocks of a file (linux/fs.h)."""


class OllamaStore:
    """One store folder; other models in it are not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_blob(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there, with the right size where it is known."""
        path = self._blob(digest)
        return path.is_file() and (size is None or path.stat().st_size == size)

    def write(self, request: CreateRequest, gguf: Path, digest: str) -> str:
        """Register a model and return its manifest digest: the sha256 that /api/tags shows.

        ``digest`` is the sha256 of ``gguf``, which is not read again to prove it if the blob is there already.
        """
        model = self._model_layer(gguf, digest)
        layers = [model]
        for kind, text in (("template", request.template), ("system", request.system)):
            if text:
                layers.append(self._layer(_IMAGE + kind, text.encode("utf-8")))
        if request.parameters:
            layers.append(self._layer(_IMAGE + "params", go_json(request.parameters)))
        config = self._layer("application/vnd.docker.container.image.v1+json", go_json(_config(gguf), keep_order=True))
        manifest = go_json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": config,
                "layers": layers,
            },
            keep_order=True,
        )
        target = self.manifest_file(request.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._publish(target, manifest)
        return hashlib.sha256(manifest).hexdigest()

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

    def blob_content(self, digest: str) -> bytes:
        """Return a small blob's bytes; ``digest`` with or without its `sha256:`."""
        return self._blob(digest.removeprefix("sha256:")).read_bytes()

    def manifest_file(self, name: str) -> Path:
        """Return where the manifest of a model lies."""
        return self.folder.joinpath("manifests", *manifest_path(name))

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / f"sha256-{digest}"

    def _model_layer(self, gguf: Path, digest: str) -> dict[str, Any]:
        size = gguf.stat().st_size
        if not self.has_blob(digest, size):
            temporary = self._temporary()
            try:
                _copy(gguf, temporary, size)
                temporary.chmod(0o644)
                publish(temporary, self._blob(digest))
            finally:
                temporary.unlink(missing_ok=True)
        else:
            # A server removes unreferenced blobs older than an hour when it starts.
            os.utime(self._blob(digest))
        return {"mediaType": _IMAGE + "model", "digest": f"sha256:{digest}", "size": size, "from": gguf.name}

    def _layer(self, media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        if self.has_blob(digest, len(content)):
            os.utime(self._blob(digest))
        else:
            self._publish(self._blob(digest), content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def _publish(self, target: Path, content: bytes) -> None:
        temporary = self._temporary()
        try:
            temporary.write_bytes(content)
            temporary.chmod(0o644)
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        """Return a name in blobs/ of the form that Ollama gives its own temporary files, and sweeps."""
        blobs = self.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        return blobs / f"sha256-{os.getpid()}{os.urandom(4).hex()}.tmp"


def go_json(value: Any, *, keep_order: bool = False) -> bytes:
    """Return JSON as Go's encoder writes it: compact, keys of maps sorted, HTML characters escaped, newline at the end.

    Source: Go's encoding/json, Encoder with its default SetEscapeHTML(true). Structs keep the order of their fields.
    """
    text = json.dumps(_whole(value), separators=(",", ":"), ensure_ascii=False, sort_keys=not keep_order)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8") + b"\n"


def _whole(value: Any) -> Any:
    """Write 1.0 as 1, as Go does."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _config(gguf: Path) -> dict[str, Any]:
    """Return the config blob, in the order of Go's struct (types/model/config.go)."""
    reader = GGUFReader(gguf)
    architecture = str(reader.fields["general.architecture"].contents())
    kind = reader.fields.get("general.file_type")
    number = int(kind.contents()) if kind is not None else 0
    return {
        "model_format": "gguf",
        "model_family": architecture,
        "model_families": [architecture],
        "model_type": human_number(sum(int(tensor.n_elements) for tensor in reader.tensors)),
        "file_type": _file_type(number),
        "architecture": "amd64",
        "os": "linux",
    }


def _file_type(number: int) -> str:
    """Return Ollama's name of a file type: llama.cpp's without its prefix; 0 (all F32) is "unknown" there."""
    if number <= 0:
        return "unknown"
    return LlamaFileType(number).name.removeprefix("MOSTLY_")


def human_number(count: int) -> str:
    """Return a number of parameters as Ollama shows it (format/format.go): 3.1M, 494.03M, 7.6B."""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f}{name}"
    return str(count)


def _copy(source: Path, target: Path, size: int) -> None:
    """Copy a large file, sharing its blocks where the filesystem can (btrfs, XFS): no time and no room then."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError:
            require_free_disk(target.parent, size, f"the copy of {source.name} in the store")
            # copy_file_range or sendfile underneath: the bytes do not pass through Python.
            shutil.copyfile(source, target)
