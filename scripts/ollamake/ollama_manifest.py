"""Ollama's manifest and small blobs, byte for byte as a server writes them for a create request.

Sources: Ollama's server/create.go (order of the layers), manifest/manifest.go and manifest/layer.go, types/model/config.go,
format/format.go, fs/ggml/type.go. A model's digest, as /api/tags gives it, is the sha256 of its manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from ollamake.create_request import CreateRequest

_IMAGE = "application/vnd.ollama.image."
_CONFIG = "application/vnd.docker.container.image.v1+json"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class ManifestForm:
    """What differs between the versions of Ollama."""

    source_path: bool
    """The layer of the weights names the path of its own blob (before 0.30, which rewrites the weights); that of an adapter
    does, too, and later names the file of the request."""
    root_filesystem: bool
    """The config lists the digests of the layers (before 0.32.7)."""
    all_file_types: bool
    """IQ and ternary types have names (since 0.30); they were "unknown"."""


NEWEST = ManifestForm(source_path=False, root_filesystem=False, all_file_types=True)


def form_of_version(version: str | None) -> ManifestForm:
    """Return the form of a server's version, such as `0.17.4`; the newest where there is no telling."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    # Built without a version it calls itself 0.0.0.
    if numbers is None or numbers[0] == "0.0.0":
        return NEWEST
    parts = tuple(int(number) for number in numbers.groups())
    return ManifestForm(
        source_path=parts < (0, 30, 0), root_filesystem=parts < (0, 32, 7), all_file_types=parts >= (0, 30, 0)
    )


@dataclass(frozen=True)
class Manifest:
    """A manifest and the small blobs it names."""

    content: bytes
    blobs: dict[str, bytes]
    """sha256 (hexadecimal) -> content, of all but the weights."""

    @property
    def digest(self) -> str:
        """What /api/tags and `ollama list` show."""
        return hashlib.sha256(self.content).hexdigest()


def manifest_of(
    request: CreateRequest, record: dict[str, Any], form: ManifestForm, source_path: str | None = None
) -> Manifest:
    """Return what a server of that form writes for a request.

    ``record`` is the GGUF's: sha256, size, architecture, parameters, file_type. ``source_path`` is where the server has
    its blob, for forms that say so. The GGUF itself is not read.
    """
    weights: dict[str, Any] = {
        "mediaType": f"{_IMAGE}model",
        "digest": f"sha256:{record['sha256']}",
        "size": record["size"],
    }
    if form.source_path and source_path is not None:
        weights["from"] = source_path
    small = [(_IMAGE + kind, content) for kind, content in small_blobs(request)]
    adapters = [] if request.adapter_blob is None else [_adapter_layer(request, form, source_path)]
    layers = [weights, *adapters, *(_layer(media_type, content) for media_type, content in small)]
    config = go_json(_config(record, layers, form), keep_order=True)
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _layer(_CONFIG, config), "layers": layers}
    blobs = {hashlib.sha256(content).hexdigest(): content for content in (*(content for _, content in small), config)}
    return Manifest(go_json(manifest, keep_order=True), blobs)


def _adapter_layer(request: CreateRequest, form: ManifestForm, source_path: str | None) -> dict[str, Any]:
    """Return the layer of an adapter, which no version rewrites: it says where it came from."""
    assert request.adapter_blob is not None
    digest, size = request.adapter_blob
    layer: dict[str, Any] = {"mediaType": f"{_IMAGE}adapter", "digest": f"sha256:{digest}", "size": size}
    if not form.source_path:
        layer["from"] = request.adapter
    elif source_path is not None:
        layer["from"] = str(PurePath(source_path).with_name(f"sha256-{digest}"))
    return layer


def small_blobs(request: CreateRequest) -> list[tuple[str, bytes]]:
    """Return (kind, content) of each blob of a request beside the weights and the config, in Ollama's order."""
    blobs = [(kind, text.encode("utf-8")) for kind in ("template", "system") if (text := getattr(request, kind))]
    blobs += [("license", text.encode("utf-8")) for text in request.license]
    if request.parameters:
        blobs.append(("params", go_json({name: _decoded(value) for name, value in request.parameters.items()})))
    return blobs


def _decoded(value: Any) -> Any:
    """Return a parameter as Go reads it from a request: every number is a float64, so that a long seed loses digits."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def go_json(value: Any, *, keep_order: bool = False) -> bytes:
    """Return JSON as Go's encoder writes it: compact, keys of maps sorted, HTML characters escaped, newline at the end.

    Source: Go's encoding/json, Encoder with its default SetEscapeHTML(true). Structs keep the order of their fields.
    """
    return _go_value(value, keep_order).encode("utf-8") + b"\n"


def _go_value(value: Any, keep_order: bool) -> str:
    match value:
        case dict():
            items = value.items() if keep_order else sorted(value.items())
            return "{" + ",".join(f"{_go_text(key)}:{_go_value(item, keep_order)}" for key, item in items) + "}"
        case list() | tuple():
            return "[" + ",".join(_go_value(item, keep_order) for item in value) + "]"
        case str():
            return _go_text(value)
        case float():
            return _go_float(value)
    return json.dumps(value)


def _go_text(text: str) -> str:
    text = json.dumps(text, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _go_float(value: float) -> str:
    """Write the shortest digits that read back as the same number, with an exponent only below 1e-6 and from 1e21 on."""
    text = repr(value)
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return f"{Decimal(text):f}".removesuffix(".0")
    return re.sub(r"e([+-])0", r"e\1", text)


def _layer(media_type: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _config(record: dict[str, Any], layers: list[dict[str, Any]], form: ManifestForm) -> dict[str, Any]:
    """Return the config blob, in the order of Go's struct."""
    # Before 0.30 the architecture of every GGUF is listed, from then on that of models.
    adapters_count = sum(layer["mediaType"] == f"{_IMAGE}adapter" for layer in layers) if form.source_path else 0
    config: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": record["architecture"],
        "model_families": [record["architecture"]] * (1 + adapters_count),
        "model_type": human_number(record["parameters"]),
        "file_type": file_type_name(record["file_type"], form),
        "architecture": "amd64",
        "os": "linux",
    }
    if form.root_filesystem:
        config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    return config


def file_type_name(number: int | None, form: ManifestForm = NEWEST) -> str:
    """Return Ollama's name of a GGUF's file type: llama.cpp's without its prefix; 0 (all F32) is "unknown" there."""
    from gguf import LlamaFileType  # with numpy, which takes longer to import than all else that looks at a store

    # Types of newer llama.cpp than the gguf package knows have no name here, nor in Ollama.
    if not number or number not in set(LlamaFileType):
        return "unknown"
    name = LlamaFileType(number).name.removeprefix("MOSTLY_")
    return "unknown" if name.startswith(("IQ", "TQ")) and not form.all_file_types else name


def human_number(count: int) -> str:
    """Return a number of parameters as Ollama shows it (format/format.go): 3.12M, 494.03M, 7.6B."""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f}{name}"
    return str(count)
