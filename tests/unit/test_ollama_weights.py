"""The weights of a model that Ollama has already: where they are found, and what cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from played_server import PlayedServer, playing

from ollamake.errors import OllamakeError
from ollamake.ollama_weights import OllamaWeights, find_weights, weights_record
from ollamake.registration import Place

KEY = "models.m.ollama.from"
DIGEST = "a" * 64


@pytest.fixture
def played() -> Iterator[PlayedServer]:
    with playing() as server:
        yield server


def shown(server: PlayedServer, modelfile: str) -> Place:
    server.answers["POST", "/api/show"] = [(200, {"modelfile": modelfile})]
    return Place("server", server.address, "nowhere", 5.0)


def test_a_blob_of_a_server_on_this_machine(played: PlayedServer, tmp_path: Path) -> None:
    blob = tmp_path / f"sha256-{DIGEST}"
    blob.write_bytes(b"weights")
    found = find_weights("m:q8_0", shown(played, f"# a comment\nFROM {blob}\n"), KEY)
    assert found == OllamaWeights(blob, DIGEST, played.address)


@pytest.mark.parametrize(
    ("modelfile", "message"),
    [
        (f"FROM /nowhere/sha256-{DIGEST}", "is not here or not for the user .* to read.* run ollamake on its machine"),
        (f"FROM /nowhere/sha256-{DIGEST}\nADAPTER /nowhere/sha256-{'b' * 64}", "expected a model without an adapter"),
        ("FROM qwen3:480b-cloud", "has no weights of m:q8_0 that could be used"),
    ],
)
def test_what_a_server_has_and_cannot_be_used(played: PlayedServer, modelfile: str, message: str) -> None:
    with pytest.raises(OllamakeError, match=f"^{re.escape(KEY)}: .*{message}"):
        find_weights("m:q8_0", shown(played, modelfile), KEY)


def test_a_server_that_has_no_such_model(played: PlayedServer) -> None:
    played.answers["POST", "/api/show"] = [(404, {"error": "model 'm:q8_0' not found"})]
    with pytest.raises(OllamakeError, match=f"^{re.escape(KEY)}: .*none of the name 'm:q8_0'.*`ollama pull m:q8_0`"):
        find_weights("m:q8_0", Place("server", played.address, "nowhere", 5.0), KEY)


def test_the_folder_of_this_user_s_ollama_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "models"
    manifest = store / "manifests/registry.ollama.ai/library/m/q8_0"
    manifest.parent.mkdir(parents=True)
    layer = f'{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{DIGEST}", "size": 7}}'
    manifest.write_text(f'{{"layers": [{layer}], "config": {{}}}}', encoding="utf-8")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    place = Place("store", None, str(tmp_path / "own"))
    with pytest.raises(OllamakeError, match=r"the weights of m:q8_0 .* are not there"):
        find_weights("m:q8_0", place, KEY)
    (store / "blobs").mkdir()
    (store / "blobs" / f"sha256-{DIGEST}").write_bytes(b"weights")
    assert find_weights("m:q8_0", place, KEY).blob == store / "blobs" / f"sha256-{DIGEST}"
    with pytest.raises(OllamakeError, match=rf"none of the name 'n:q8_0'.*it is not in {tmp_path}/own and {store}"):
        find_weights("n:q8_0", place, KEY)


@pytest.mark.parametrize("content", ["{", "[]", '{"layers": [{}], "config": {}}', '{"layers": [1], "config": {}}'])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    manifest = tmp_path / "own/manifests/registry.ollama.ai/library/m/q8_0"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(content, encoding="utf-8")
    with pytest.raises(
        OllamakeError, match=rf"^{re.escape(KEY)}: the manifest of m:q8_0 in .* is damaged .*ollama pull m:q8_0"
    ):
        find_weights("m:q8_0", Place("store", None, str(tmp_path / "own")), KEY)


def test_what_is_no_gguf(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"no weights at all")
    with pytest.raises(OllamakeError, match=r"is not a whole GGUF .*Ollama's blob is damaged; fetch m:q8_0 again"):
        weights_record(OllamaWeights(blob, DIGEST, "store"), "m:q8_0", "m.Q8_0.gguf", "Q8_0", KEY)
