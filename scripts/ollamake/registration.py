"""Registers a model where the configuration says, and believes it only when it has been checked.

The marker that results says what was asked, of whom, and what they hold now.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ollamake.create_request import CreateRequest
from ollamake.damage import rebuild_command
from ollamake.errors import OllamakeError
from ollamake.installed_ollama import installed_version
from ollamake.ollama_manifest import form_of_version, manifest_of
from ollamake.ollama_server import PATIENCE, OllamaServer, ServerUnreachable
from ollamake.ollama_store import OllamaStore
from ollamake.verification import blob_damage, predicted_digest, server_differences, store_differences

log = logging.getLogger("ollamake")

DEFAULT_ADDRESS = "http://127.0.0.1:11434"

_TRIES = 3
"""Times that a model is created if blobs of it vanish: another client of the server may sweep them."""


@dataclass(frozen=True)
class Place:
    """Where to register: `ollama.target`, `host`, `store` and `timeout` of the configuration."""

    target: str
    host: str | None
    store: str
    timeout: float = PATIENCE

    def server(self) -> OllamaServer | None:
        """Return the server to register on, or None for the store. Raises OllamakeError if one is demanded and absent."""
        if self.target == "store":
            return None
        server = OllamaServer(self.host, self.timeout)
        try:
            log.info("Ollama %s at %s", server.version(), server.address)
        except ServerUnreachable as error:
            # A server that is there but fails just now is not to be passed over in silence.
            if self.target == "server" or not error.nobody_there:
                raise
            log.info("no Ollama server at %s: registering in the store %s", server.address, self.store)
            return None
        return server


def register(
    request: CreateRequest,
    gguf: Path,
    record: Mapping[str, Any],
    place: Place,
    adapter: tuple[Path, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Register a model and return its marker.

    ``record`` is the GGUF's: sha256, size, architecture, parameters, file_type; the file itself is read only where its bytes
    have to go somewhere. ``adapter``: the GGUF of an adapter that is added to it while it runs, and its record.

    Raises OllamakeError if the server does not answer where it is demanded, refuses, or holds something else afterwards than
    what was asked.
    """
    files = {"gguf": (gguf, record)} | ({} if adapter is None else {"adapter": adapter})
    for kind, (file, known) in files.items():
        if file.stat().st_size != known["size"]:
            made = "quantized" if kind == "gguf" else "converted"
            raise OllamakeError(
                f"{file} has {file.stat().st_size} bytes, its record says {known['size']}: it was changed or cut short."
                f" Delete it and run again; it is {made} anew: {rebuild_command([file])}"
            )
    if adapter is not None:
        file, known = adapter
        request = replace(request, adapter=file.name, adapter_blob=(known["sha256"], known["size"]))
    weights = [(file, str(known["sha256"])) for file, known in files.values()]
    server = place.server()
    if server is not None:
        with _one_at_a_time(server.address):
            held = _register_on_server(server, request, weights, record)
    else:
        with _one_at_a_time(str(Path(place.store).resolve())):
            held = _register_in_store(Path(place.store), request, weights, record)
    return {
        "name": request.name,
        **held,
        **{
            kind: {"file": str(file), "sha256": known["sha256"], "size": known["size"]}
            for kind, (file, known) in files.items()
        },
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


def marker_differences(marker: Mapping[str, Any], request: CreateRequest, weights: str) -> list[str]:
    """Return what the place of a marker holds that the marker does not say, with every blob looked at.

    ``request`` and ``weights`` are what the marker says, as create_request.request_of_marker gives them.
    """
    if marker["target"] == "store":
        store = OllamaStore(Path(marker["store"]))
        return store_differences(store, request, weights, marker["manifest_digest"], deep=True)
    server = OllamaServer(marker["host"])
    server.version()
    differences, manifest = server_differences(server, request, weights, marker["manifest_digest"])
    if manifest is not None:
        differences += blob_damage(server.show(request.name))
    return differences


def _register_on_server(
    server: OllamaServer, request: CreateRequest, weights: Sequence[tuple[Path, str]], record: Mapping[str, Any]
) -> dict[str, Any]:
    digest = record["sha256"]
    if server.is_loaded(request.name):
        # By name it can only be let go while the name still means what is loaded.
        log.info("%s is loaded in its former form; unloading it", request.name)
        server.unload(request.name)
    for attempt in range(_TRIES):
        for file, blob in weights:
            _put_weights(server, file, blob)
        try:
            server.create(request.as_api(digest), record["size"])
        except OllamakeError as error:
            # Another client's delete has swept the blob between our look and the create.
            if "no such file" not in str(error) or attempt == _TRIES - 1:
                raise
            log.info("%s; registering again", error)
            continue
        differences, manifest = server_differences(server, request, digest)
        if not differences:
            break
        if attempt == _TRIES - 1 or not all("not there" in line or "not list" in line for line in differences):
            _refuse(differences, request.name, server.address)
        log.info("%s; registering again", "; ".join(differences))
    version = server.version(once=False)
    proven = manifest == predicted_digest(version, request, record, server.show(request.name))
    log.info(
        "verified: weights%s, system, template, license, parameters and every blob%s",
        "" if request.adapter is None else ", adapter",
        "; the manifest is the one that was asked for, byte for byte" if proven else "",
    )
    return {"target": "server", "host": server.address, "server_version": version, "manifest_digest": manifest}


def _put_weights(server: OllamaServer, gguf: Path, digest: str) -> None:
    if server.has_blob(digest):
        log.info("%s is on the server already", gguf.name)
    else:
        server.upload_blob(gguf, digest)


def _register_in_store(
    folder: Path, request: CreateRequest, weights: Sequence[tuple[Path, str]], record: Mapping[str, Any]
) -> dict[str, Any]:
    store = OllamaStore(folder)
    version = installed_version()
    blob = str(store.blob_file(record["sha256"]).absolute())
    manifest = manifest_of(request, dict(record), form_of_version(version), blob)
    store.write(request.name, manifest, *weights[0], *weights[1:])
    _refuse(store_differences(store, request, record["sha256"], manifest.digest), request.name, str(folder))
    return {"target": "store", "store": str(folder), "server_version": version, "manifest_digest": manifest.digest}


def _refuse(differences: list[str], name: str, where: str) -> None:
    if differences:
        raise OllamakeError(
            f"{name} was registered in {where}, but what is there now is not what was asked for:\n  "
            + "\n  ".join(differences)
            + "\nSomebody else may have written to it at the same time; run again."
        )


@contextmanager
def _one_at_a_time(place: str) -> Iterator[None]:
    """Hold the lock of a server or store: Ollama has none, and parallel creates lose blobs."""
    # All the names by which a machine calls itself are one server.
    place = re.sub(r"(?<=://)(localhost|0\.0\.0\.0|\[::1?\])(?=[:/]|$)", "127.0.0.1", place)
    name = f"ollamake-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except PermissionError as error:
        raise OllamakeError(
            f"the lock {lock.lock_file} belongs to another user of this machine ({error}). Two users who register on one server"
            " take turns by it: remove it when nobody registers, or set TMPDIR to a folder of your own."
        ) from error
    except Timeout:
        log.info("another run registers on %s; waiting for it", place)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
