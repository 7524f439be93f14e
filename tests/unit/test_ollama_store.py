"""The store has the form that Ollama writes, whole or not at all, and nothing of others is touched."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_store import OllamaStore, go_json, human_number
from ollamake.registration import register


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.Q8_0.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_file_type(7)
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def put(store: Path, gguf: Path, name: str = "m:q8_0", system: str | None = "道路\r\n", **parameters: object) -> str:
    return OllamaStore(store).write(
        CreateRequest(name, gguf.name, system, None, dict(parameters)), gguf, sha256_of(gguf)
    )


def test_layout(tmp_path: Path, gguf: Path) -> None:
    store = tmp_path / "store"
    digest = put(store, gguf, temperature=1.0, stop=["<|im_end|>", "a&b"])
    path = store / "manifests/registry.ollama.ai/library/m/q8_0"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    manifest = json.loads(path.read_bytes())
    kinds = [layer["mediaType"] for layer in manifest["layers"]]
    assert kinds == [f"application/vnd.ollama.image.{kind}" for kind in ("model", "system", "params")]
    for layer in (*manifest["layers"], manifest["config"]):
        blob = store / "blobs" / layer["digest"].replace(":", "-")
        assert sha256_of(blob) == layer["digest"].removeprefix("sha256:")
        assert blob.stat().st_size == layer["size"]
        assert blob.stat().st_mode & 0o777 == 0o644
    contents = {
        layer["mediaType"]: OllamaStore(store).blob_content(layer["digest"]) for layer in manifest["layers"][1:]
    }
    assert contents["application/vnd.ollama.image.system"] == "道路\r\n".encode()
    assert (
        contents["application/vnd.ollama.image.params"]
        == b'{"stop":["\\u003c|im_end|\\u003e","a\\u0026b"],"temperature":1}\n'
    )
    config = json.loads(OllamaStore(store).blob_content(manifest["config"]["digest"]))
    assert (config["model_family"], config["model_type"], config["file_type"]) == ("qwen2", "2K", "Q8_0")
    assert not [file for file in store.rglob("*") if file.name.endswith(".tmp")]


def test_repeating_changes_nothing_and_others_stay(tmp_path: Path, gguf: Path) -> None:
    store = tmp_path / "store"
    first = put(store, gguf)
    put(store, gguf, "other:q8_0", "another")
    other = (store / "manifests/registry.ollama.ai/library/other/q8_0").read_bytes()
    assert put(store, gguf) == first
    assert put(store, gguf, "m:q8_0", "new prompt") != first
    assert (store / "manifests/registry.ollama.ai/library/other/q8_0").read_bytes() == other


def test_the_source_is_neither_linked_nor_touched(tmp_path: Path, gguf: Path) -> None:
    """A server changes the times of its blobs; Snakemake must not see that on its own file."""
    before = gguf.stat()
    put(tmp_path / "store", gguf)
    blob = tmp_path / "store/blobs" / f"sha256-{sha256_of(gguf)}"
    os.utime(blob, (1, 1))
    after = gguf.stat()
    assert (after.st_mtime_ns, after.st_nlink, after.st_ino) == (before.st_mtime_ns, 1, before.st_ino)


def test_a_truncated_blob_is_replaced(tmp_path: Path, gguf: Path) -> None:
    store = tmp_path / "store"
    put(store, gguf)
    blob = store / "blobs" / f"sha256-{sha256_of(gguf)}"
    blob.write_bytes(b"half")
    put(store, gguf)
    assert sha256_of(blob) == sha256_of(gguf)


def test_registration_in_the_store_is_checked(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = CreateRequest("m:q8_0", gguf.name, "S", "T", {"top_k": 3})
    record = {"sha256": sha256_of(gguf), "size": gguf.stat().st_size}
    marker = register(request, gguf, record, "store", None, tmp_path / "store")
    assert marker["target"] == "store"
    assert marker["gguf"] == {"file": str(gguf), **record}
    assert marker["request"] == request.as_api(record["sha256"])
    real = OllamaStore.write

    def loses_a_blob(self: OllamaStore, *arguments: object) -> str:
        digest = real(self, *arguments)  # type: ignore[arg-type]
        (self.folder / "blobs" / f"sha256-{hashlib.sha256(b'S').hexdigest()}").unlink()
        return digest

    monkeypatch.setattr(OllamaStore, "write", loses_a_blob)
    with pytest.raises(OllamakeError, match=r"not what was asked for:\s+the blob sha256:.* is missing"):
        register(request, gguf, record, "store", None, tmp_path / "store")
    monkeypatch.setattr(
        OllamaStore, "write", lambda self, r, g, d: real(self, CreateRequest(r.name, r.file, "other"), g, d)
    )
    with pytest.raises(OllamakeError, match="system: expected"):
        register(request, gguf, record, "store", None, tmp_path / "store")


def test_a_gguf_that_changed_since_its_record(tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(OllamakeError, match="changed or cut short"):
        register(CreateRequest("m:q8_0", "m"), gguf, {"sha256": "0", "size": 1}, "store", None, tmp_path / "store")


def test_json_as_go_writes_it() -> None:
    value = {"b": "<>&\u2028道", "a": [1.0, 0.1, True, None]}
    assert go_json(value) == '{"a":[1,0.1,true,null],"b":"\\u003c\\u003e\\u0026\\u2028道"}\n'.encode()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (90_000, "90K"),
        (494_032_768, "494.03M"),
        (5 * 10**6, "5M"),
        (7_615_616_512, "7.6B"),
        (3 * 10**9, "3B"),
    ],
)
def test_human_number(count: int, text: str) -> None:
    assert human_number(count) == text
