"""Whether a server or a store holds what was asked for: every layer, every parameter, every blob.

Where the digest of the manifest is the one that the request gives byte for byte, that alone proves every layer. It is not
always: a server may add a template of its own, and versions differ. What it says of the model is therefore always compared,
and every blob asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_manifest import form_of_version, manifest_of, small_blobs
from ollamake.ollama_name import manifest_path
from ollamake.ollama_server import NoSuchModel, OllamaServer, ShownModel
from ollamake.ollama_store import OllamaStore
from ollamake.progress import progress_bar


def server_differences(
    server: OllamaServer, request: CreateRequest, weights: str, expected_manifest: str | None = None
) -> tuple[list[str], str | None]:
    """Return what a server holds that was not asked for, or the other way round, one a line; and the manifest's digest.

    ``weights`` is the GGUF's sha256; ``expected_manifest`` the digest that an earlier registration left, if any.
    """
    digest = server.digests().get(manifest_path(request.name))
    if digest is None:
        return ["the server does not list it: it was deleted or renamed"], None
    try:
        shown = server.show(request.name)
    except NoSuchModel as error:
        return [f"a blob of it is not there, or it was just deleted: {error}"], digest
    found = list(shown_differences(request, weights, shown))
    if expected_manifest is not None and digest != expected_manifest:
        found.append(f"manifest: {expected_manifest} was registered, it now has {digest}")
    # Where it has added parameters of its own its blob is another; what they are has been compared above.
    added = shown.parameters.keys() - request.parameters.keys()
    blobs = [("weights", weights), *_adapter(request)]
    blobs += [(kind, _digest(content)) for kind, content in small_blobs(request) if not (kind == "params" and added)]
    found += [
        f"the blob of the {kind} (sha256 {blob}) is not there" for kind, blob in blobs if not server.has_blob(blob)
    ]
    return found, digest


def blob_damage(shown: ShownModel) -> list[str]:
    """Return which of a server's blobs of weights and adapter are damaged, where they lie on this machine and may be read.

    A server checks a blob when it comes and never again.
    """
    found = []
    for path, digest in ((shown.weights_path, shown.weights), (shown.adapter_path, shown.adapter)):
        blob = Path(path or "")
        if not blob.is_absolute() or not os.access(blob, os.R_OK):
            continue
        with progress_bar(blob.stat().st_size, f"sha256 of {blob.name[:19]}") as progress:
            if sha256_of(blob, progress.update) != digest:
                found.append(f"the blob {blob} has other bytes than its name says: it is damaged")
    return found


def predicted_digest(server_version: str, request: CreateRequest, record: Mapping[str, Any], shown: ShownModel) -> str:
    """Return the manifest digest that a server of that version gives this request where it adds nothing of its own."""
    return manifest_of(request, dict(record), form_of_version(server_version), shown.weights_path).digest


def shown_differences(request: CreateRequest, weights: str, shown: ShownModel) -> Iterator[str]:
    """Compare what a server shows of a model with what was asked for."""
    if shown.weights != weights:
        yield f"weights: asked for sha256 {weights}, it has {shown.weights}"
    adapter = dict(_adapter(request)).get("adapter")
    if shown.adapter != adapter:
        yield f"adapter: asked for sha256 {adapter}, it has {shown.adapter}"
    if shown.system != (request.system or ""):
        yield f"system: asked for {request.system!r}, it has {shown.system!r}"
    # Without a TEMPLATE of ours the server may have chosen one; from 0.30 on it shows the GGUF's Jinja where it prefers
    # that, and our TEMPLATE only by its blob. How it prompts is what check_template looks at.
    if request.template and shown.template != request.template and not _is_jinja(shown.template):
        yield f"template: asked for {request.template!r}, it has {shown.template!r}"
    if shown.license != "\n".join(request.license):
        yield f"license: asked for {list(request.license)!r}, it has {shown.license!r}"
    for name, value in request.parameters.items():
        wanted = [_normal(item) for item in (value if isinstance(value, list) else [value])]
        have = [_normal(_from_go(text)) for text in shown.parameters.get(name, [])]
        if sorted(wanted, key=str) != sorted(have, key=str):
            yield f"{name}: asked for {value!r}, it has {shown.parameters.get(name)!r}"
    for name in sorted(shown.parameters.keys() - request.parameters.keys()):
        # The stop texts of a template that the server has chosen itself.
        if name != "stop" or request.template:
            yield f"{name}: not asked for, it has {shown.parameters[name]!r}"


def store_differences(
    store: OllamaStore, request: CreateRequest, weights: str, expected_manifest: str | None = None, deep: bool = False
) -> list[str]:
    """Return what a store holds that was not asked for, one a line; ``deep``: with every blob read and its sha256 taken."""
    try:
        return _store_differences(store, request, weights, expected_manifest, deep)
    except OSError as error:
        return [f"the store cannot be read: {error}"]


def _store_differences(
    store: OllamaStore, request: CreateRequest, weights: str, expected_manifest: str | None, deep: bool
) -> list[str]:
    path = store.manifest_file(request.name)
    if not path.exists():
        return [f"the store does not have it ({path}): it was deleted or renamed"]
    try:
        manifest = store.read(request.name)
        layers = [*manifest["layers"], manifest["config"]]
        held = [(layer["mediaType"].rpartition(".")[2], layer["digest"], layer["size"]) for layer in layers]
    except (OllamakeError, KeyError, TypeError) as error:
        return [f"the manifest is damaged: {error}"]
    found: list[str] = []
    digest = _digest(path.read_bytes())
    if expected_manifest is not None and digest != expected_manifest:
        found.append(f"manifest: {expected_manifest} was registered, it now has {digest}")
    asked = [
        ("model", weights),
        *_adapter(request),
        *((kind, _digest(content)) for kind, content in small_blobs(request)),
    ]
    have = [(kind, digest.removeprefix("sha256:")) for kind, digest, _ in held[:-1]]
    missing, added = [one for one in asked if one not in have], [one for one in have if one not in asked]
    found += [f"{kind}: asked for sha256 {digest}, the store does not name it" for kind, digest in missing]
    found += [f"{kind}: not asked for, it has sha256 {digest}" for kind, digest in added]
    for kind, digest, size in held:
        if not store.has_blob(digest, size):
            found.append(f"the blob of the {kind} ({digest}) is missing or has another size than {size}")
        elif deep and f"sha256:{_sha256(store, digest, size)}" != digest:
            found.append(f"the blob of the {kind} ({digest}) has other bytes than its name says: it is damaged")
    return found


def _adapter(request: CreateRequest) -> list[tuple[str, str]]:
    """Return ("adapter", sha256) of a request's adapter, if it has one."""
    return [] if request.adapter_blob is None else [("adapter", request.adapter_blob[0])]


def _sha256(store: OllamaStore, digest: str, size: int) -> str:
    file = store.blob_file(digest)
    with progress_bar(size, f"sha256 of {file.name[:19]}") as progress:
        return sha256_of(file, progress.update)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_jinja(template: str) -> bool:
    return "{%" in template


def _normal(value: Any) -> Any:
    """Return what is the same for all spellings of a number; true is not 1."""
    if isinstance(value, bool):
        return "bool", value
    return float(value) if isinstance(value, int | float) else value


def _from_go(text: str) -> Any:
    """Parse a Go literal of %#v: numbers, true, false and quoted texts, whose escapes are those of JSON and a few more."""
    if text.startswith('"'):
        # Each escape is replaced in one pass, so that an escaped backslash before an x is not taken for one.
        text = re.sub(r"\\(x[0-9a-f]{2}|U[0-9a-f]{8}|.)", _json_escape, text)
    elif text.startswith("`"):
        return text.strip("`")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json_escape(match: re.Match[str]) -> str:
    escape = match[1]
    if escape[0] == "x":
        return f"\\u00{escape[1:]}"
    if escape[0] == "U":
        return json.dumps(chr(int(escape[1:], 16)))[1:-1]
    return {"a": "\\u0007", "v": "\\u000b"}.get(escape, match[0])
