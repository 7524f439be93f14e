"""Whether registered models still are what their markers say, with one request to each server."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_server import PlayedServer, playing

from ollamake.create_request import CreateRequest
from ollamake.drift import KnownRegistrations
from ollamake.file_digest import sha256_of
from ollamake.ollama_manifest import NEWEST, manifest_of
from ollamake.ollama_server import ServerUnreachable
from ollamake.ollama_store import OllamaStore


@pytest.fixture
def played() -> Iterator[PlayedServer]:
    with playing() as server:
        models = [{"name": f"m{number}:q8_0", "digest": f"d{number}"} for number in range(3)]
        server.answers[("GET", "/api/tags")] = [(200, {"models": models})]
        yield server


def write_marker(folder: Path, name: str, **values: Any) -> Path:
    path = folder / f"{name.replace(':', '-').replace('/', '-')}.json"
    path.write_text(json.dumps({"name": name, "target": "server", **values}), encoding="utf-8")
    return path


def test_one_request_for_many_models(played: PlayedServer, tmp_path: Path) -> None:
    known = KnownRegistrations()
    for number in range(3):
        marker = write_marker(tmp_path, f"m{number}:q8_0", host=played.address, manifest_digest=f"d{number}")
        assert known.drift(marker) is None
        assert known.drift(marker) is None
    assert [path for _, path, _ in played.requests] == ["/api/tags"]


def test_no_request_before_one_is_needed(played: PlayedServer) -> None:
    KnownRegistrations()
    assert played.requests == []


def test_each_server_is_asked_for_its_own_models(played: PlayedServer, tmp_path: Path) -> None:
    known = KnownRegistrations()
    with playing() as other:
        other.answers[("GET", "/api/tags")] = [(200, {"models": []})]
        here = write_marker(tmp_path, "m0:q8_0", host=played.address, manifest_digest="d0")
        assert known.drift(here) is None
        there = write_marker(tmp_path, "m0:q8_0", host=other.address, manifest_digest="d0")
        assert known.drift(there) == f"m0:q8_0 is no longer in {other.address}"


@pytest.mark.parametrize("name", ["m0:q8_0", "library/m0:q8_0", "registry.ollama.ai/library/m0:q8_0"])
def test_a_name_is_the_same_in_every_spelling(played: PlayedServer, tmp_path: Path, name: str) -> None:
    marker = write_marker(tmp_path, name, host=played.address, manifest_digest="d0")
    assert KnownRegistrations().drift(marker) is None


def test_a_model_that_was_deleted_or_renamed(played: PlayedServer, tmp_path: Path) -> None:
    marker = write_marker(tmp_path, "gone:q8_0", host=played.address, manifest_digest="d0")
    assert KnownRegistrations().drift(marker) == f"gone:q8_0 is no longer in {played.address}"


def test_a_model_that_was_replaced(played: PlayedServer, tmp_path: Path) -> None:
    marker = write_marker(tmp_path, "m0:q8_0", host=played.address, manifest_digest="former")
    assert KnownRegistrations().drift(marker) == (
        f"m0:q8_0 in {played.address} is another model than the one that was registered"
    )


def test_a_server_that_does_not_answer_is_asked_once(played: PlayedServer, tmp_path: Path) -> None:
    played.answers[("GET", "/api/tags")] = [(500, {"error": "busy"}), (200, {"models": []})]
    known = KnownRegistrations()
    for number in range(3):
        marker = write_marker(tmp_path, f"m{number}:q8_0", host=played.address, manifest_digest="d")
        with pytest.raises(ServerUnreachable, match="does not list its models"):
            known.drift(marker)
    assert len(played.requests) == 1
    nobody = write_marker(tmp_path, "m:q8_0", host="http://127.0.0.1:1", manifest_digest="d")
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        known.drift(nobody)


def test_a_registration_of_this_run_is_believed_and_no_other(played: PlayedServer, tmp_path: Path) -> None:
    """The list was fetched before the model was registered."""
    known = KnownRegistrations()
    old = write_marker(tmp_path, "m0:q8_0", host=played.address, manifest_digest="d0")
    assert known.drift(old) is None
    new = write_marker(tmp_path, "new:q8_0", host=played.address, manifest_digest="new")
    assert known.drift(new) is not None
    known.believe(new)
    assert known.drift(new) is None
    assert known.drift(write_marker(tmp_path, "m1:q8_0", host=played.address, manifest_digest="new")) is not None
    assert KnownRegistrations().drift(new) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"5",
        b'{"name": "m"}',
        b'{"name": "m", "manifest_digest": "d", "target": "store"}',
        b'{"name": "m", "manifest_digest": "d", "target": "server"}',
        b'{"name": "m", "manifest_digest": "d"}',
        b'{"name": 5, "manifest_digest": "d", "target": "store", "store": "s"}',
        None,
    ],
)
def test_a_marker_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    marker = tmp_path / "registered.json"
    if content is not None:
        marker.write_bytes(content)
    drift = KnownRegistrations().drift(marker)
    assert drift is not None
    assert drift.startswith(f"its marker {marker} cannot be read (")


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"weights")
    store = OllamaStore(tmp_path / "store")
    record = {"sha256": sha256_of(gguf), "size": 7, "architecture": "qwen2", "parameters": 1, "file_type": 1}
    store.write("m:q8_0", manifest_of(CreateRequest("m:q8_0", "m.gguf", "S"), record, NEWEST), gguf, sha256_of(gguf))
    return store


@pytest.fixture
def marker(store: OllamaStore, tmp_path: Path) -> Path:
    digest = sha256_of(store.manifest_file("m:q8_0"))
    return write_marker(tmp_path, "m:q8_0", target="store", store=str(store.folder), manifest_digest=digest)


def test_a_store_that_has_what_was_registered(marker: Path) -> None:
    assert KnownRegistrations().drift(marker) is None


@pytest.mark.parametrize("what", ["manifest", "weights", "system", "config", "damaged", "folder"])
def test_a_store_that_has_it_no_longer(store: OllamaStore, marker: Path, what: str) -> None:
    manifest = store.read("m:q8_0")
    match what:
        case "manifest":
            store.manifest_file("m:q8_0").unlink()
        case "damaged":
            store.manifest_file("m:q8_0").write_bytes(b"{")
        case "folder":
            store.folder.rename(store.folder.with_name("elsewhere"))
        case _:
            layers = {"weights": manifest["layers"][0], "system": manifest["layers"][1], "config": manifest["config"]}
            store.blob_file(layers[what]["digest"]).unlink()
    assert KnownRegistrations().drift(marker) == f"m:q8_0 is no longer in {store.folder}"


def test_a_store_in_which_a_blob_was_cut(store: OllamaStore, marker: Path) -> None:
    blob = store.blob_file(hashlib.sha256(b"S").hexdigest())
    blob.write_bytes(b"")
    assert KnownRegistrations().drift(marker) == f"m:q8_0 is no longer in {store.folder}"


def test_a_store_in_which_it_was_replaced(store: OllamaStore, marker: Path) -> None:
    path = store.manifest_file("m:q8_0")
    path.write_bytes(path.read_bytes() + b"\n")
    assert KnownRegistrations().drift(marker) == (
        f"m:q8_0 in {store.folder} is another model than the one that was registered"
    )


def test_stores_are_looked_at_again_each_time(store: OllamaStore, marker: Path) -> None:
    known = KnownRegistrations()
    assert known.drift(marker) is None
    store.manifest_file("m:q8_0").unlink()
    assert known.drift(marker) is not None
