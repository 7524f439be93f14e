"""Registers a model where the configuration says, and believes it only when it has been checked.

The marker that results says what was asked, of whom, and what they hold now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.ollama_server import OllamaServer
from ollamake.ollama_store import OllamaStore, go_json

log = logging.getLogger("ollamake")

DEFAULT_ADDRESS = "http://127.0.0.1:11434"


def register(
    request: CreateRequest, gguf: Path, record: Mapping[str, Any], target: str, host: str | None, store: Path
) -> dict[str, Any]:
    """Register a model and return its marker.

    ``record`` is the GGUF's (sha256, size); ``target`` is server, store or auto (the server if it answers, else the
    store). Raises OllamakeError if the server does not answer where it is demanded, refuses, or holds something else
    afterwards than what was asked.
    """
    if gguf.stat().st_size != record["size"]:
        raise OllamakeError(
            f"{gguf} has {gguf.stat().st_size} bytes, its record says {record['size']}: it was changed or cut short."
            " Delete it and run again; it is quantized anew."
        )
    server = _server(target, host)
    if server is not None:
        held = _register_on_server(server, request, gguf, record["sha256"])
    else:
        held = _register_in_store(store, request, gguf, record["sha256"])
    return {
        "name": request.name,
        **held,
        "gguf": {"file": str(gguf), "sha256": record["sha256"], "size": record["size"]},
        "request": request.as_api(record["sha256"]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def chat_command(marker: Mapping[str, Any], marker_file: str, chat_script: str) -> str:
    """Return the one command that chats with a registered model.

    A store has no server of its own; the script starts one on it for as long as the chat lasts.
    """
    if marker["target"] == "store":
        return f"python {shlex.quote(chat_script)} {shlex.quote(marker_file)}"
    address = "" if marker["host"] == DEFAULT_ADDRESS else f"OLLAMA_HOST={shlex.quote(marker['host'])} "
    return f"{address}ollama run {marker['name']}"


def _server(target: str, host: str | None) -> OllamaServer | None:
    """Return the server to register on, or None for the store."""
    if target == "store":
        return None
    server = OllamaServer(host)
    try:
        log.info("Ollama %s at %s", server.version(), server.address)
    except OllamakeError:
        if target == "server":
            raise
        log.info("no Ollama server at %s: registering in the store", server.address)
        return None
    return server


def _register_on_server(server: OllamaServer, request: CreateRequest, gguf: Path, digest: str) -> dict[str, Any]:
    with _one_at_a_time(server.address):
        if server.has_blob(digest):
            log.info("%s is on the server already", gguf.name)
        else:
            server.upload_blob(gguf, digest)
        server.create(request.as_api(digest))
        shown = server.show(request.name)
        differences = list(
            _differences(request, digest, shown.model_digest, shown.system, shown.template, shown.parameters)
        )
        if not server.has_blob(digest):
            differences.append("the blob of the weights is not there")
        if shown.manifest_digest is None:
            differences.append("the list of models does not have it")
        _refuse(differences, request.name, server.address)
        if server.is_loaded(request.name):
            server.unload(request.name)
    return {
        "target": "server",
        "host": server.address,
        "server_version": server.version(),
        "manifest_digest": shown.manifest_digest,
    }


def _register_in_store(folder: Path, request: CreateRequest, gguf: Path, digest: str) -> dict[str, Any]:
    store = OllamaStore(folder)
    with _one_at_a_time(str(folder.resolve())):
        manifest_digest = store.write(request, gguf, digest)
        manifest = store.read(request.name)
        layers = {layer["mediaType"].rpartition(".")[2]: layer for layer in manifest["layers"]}
        found: list[str] = [
            f"the blob {layer['digest']} is missing or has another size"
            for layer in (*manifest["layers"], manifest["config"])
            if not store.has_blob(layer["digest"].removeprefix("sha256:"), layer["size"])
        ]
        expected = {
            "model": digest,
            "system": _sha256(request.system.encode()) if request.system else None,
            "template": _sha256(request.template.encode()) if request.template else None,
            "params": _sha256(go_json(request.parameters)) if request.parameters else None,
        }
        for kind, wanted in expected.items():
            have = layers[kind]["digest"].removeprefix("sha256:") if kind in layers else None
            if have != wanted:
                found.append(f"{kind}: expected {wanted}, found {have}")
        _refuse(found, request.name, str(folder))
    return {"target": "store", "store": str(folder), "server_version": None, "manifest_digest": manifest_digest}


def _differences(
    request: CreateRequest,
    digest: str,
    model_digest: str | None,
    system: str,
    template: str,
    parameters: Mapping[str, list[str]],
) -> Iterator[str]:
    """Say what a server holds that was not asked for, or the other way round."""
    if model_digest != digest:
        yield f"weights: asked for sha256 {digest}, it has {model_digest}"
    if system != (request.system or ""):
        yield f"system: asked for {request.system!r}, it has {system!r}"
    # Without a TEMPLATE of ours the server may have chosen one, which is what it is for.
    if request.template and template != request.template:
        yield f"template: asked for {request.template!r}, it has {template!r}"
    for name, value in request.parameters.items():
        wanted = [_normal(item) for item in (value if isinstance(value, list) else [value])]
        have = [_normal(_from_go(text)) for text in parameters.get(name, [])]
        if sorted(wanted, key=str) != sorted(have, key=str):
            yield f"{name}: asked for {value!r}, it has {parameters.get(name)!r}"


def _normal(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _from_go(text: str) -> Any:
    """Parse a Go literal of %#v: numbers, true, false and quoted texts, whose escapes are those of JSON and a few more."""
    if text.startswith('"'):
        text = re.sub(r"\\x([0-9a-f]{2})", r"\\u00\1", text)
        text = re.sub(r"\\U([0-9a-f]{8})", lambda match: chr(int(match[1], 16)), text)
        text = text.replace("\\a", "\\u0007").replace("\\v", "\\u000b")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuse(differences: list[str], name: str, where: str) -> None:
    if differences:
        raise OllamakeError(
            f"{name} was registered in {where}, but what is there now is not what was asked for:\n  "
            + "\n  ".join(differences)
            + "\nSomebody else may have written to it at the same time; run again."
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _one_at_a_time(place: str) -> Iterator[None]:
    """Hold the lock of a server or store: Ollama has none, and parallel creates lose blobs."""
    name = f"ollamake-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name, mode=0o666):
        yield
