"""scripts/verify.py says of every marker whether its model is as it was registered, and changes nothing."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_server import PlayedServer, playing

import verify
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_store import OllamaStore
from ollamake.registration import Place, register

SCRIPT = Path(verify.__file__)


def registered(folder: Path, name: str, place: Place | None = None) -> Path:
    """Register a model and return its marker."""
    gguf = folder / "m.gguf"
    gguf.write_bytes(b"weights" * 1000)
    record = {"sha256": sha256_of(gguf), "size": 7000, "architecture": "qwen2", "parameters": 1, "file_type": 1}
    request = CreateRequest(name, "m.gguf", "S", parameters={"top_k": 3})
    path = folder / f"{name.replace(':', '-')}.json"
    marker = register(request, gguf, record, place or Place("store", None, str(folder / "store")))
    path.write_text(json.dumps(marker), encoding="utf-8")
    return path


def says(*markers: Path) -> str:
    """Return the message with which the script ends, "" if it finds everything as registered."""
    try:
        verify.main(["--markers", *map(str, markers)])
    except OllamakeError as error:
        return str(error)
    return ""


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_ino, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def played() -> Iterator[PlayedServer]:
    with playing() as server:
        weights = hashlib.sha256(b"weights" * 1000).hexdigest()
        shown = {"modelfile": f"FROM /b/sha256-{weights}\n", "system": "S", "parameters": "top_k 3"}
        server.answers |= {
            ("HEAD", "/api/blobs"): [(200, None)],
            ("POST", "/api/create"): [(200, {"status": "success"})],
            ("POST", "/api/show"): [(200, shown)],
            ("GET", "/api/tags"): [(200, {"models": [{"name": "s:q8_0", "digest": "abc"}]})],
            ("GET", "/api/ps"): [(200, {"models": []})],
        }
        yield server


def test_models_that_are_as_registered(tmp_path: Path, played: PlayedServer, caplog: pytest.LogCaptureFixture) -> None:
    in_store = registered(tmp_path, "m:q8_0")
    on_server = registered(tmp_path, "s:q8_0", Place("server", played.address, ""))
    before = snapshot(tmp_path)
    played.requests.clear()
    with caplog.at_level("INFO"):
        assert says(in_store, on_server) == ""
    assert [message for message in caplog.messages if not message.startswith("HTTP")] == [
        f"m:q8_0 ({tmp_path}/store): as registered",
        f"s:q8_0 ({played.address}): as registered",
    ]
    assert snapshot(tmp_path) == before
    assert {(method, path.split("/sha256")[0]) for method, path, _ in played.requests} == {
        ("GET", "/api/version"),
        ("GET", "/api/tags"),
        ("POST", "/api/show"),
        ("HEAD", "/api/blobs"),
    }


def test_every_model_that_differs_is_told_and_nothing_is_changed(tmp_path: Path, played: PlayedServer) -> None:
    fine, gone, damaged = (registered(tmp_path, f"{name}:q8_0") for name in ("fine", "gone", "damaged"))
    differing = registered(tmp_path, "s:q8_0", Place("server", played.address, ""))
    played.answers[("GET", "/api/tags")] = [(200, {"models": [{"name": "s:q8_0", "digest": "new"}]})]
    store = OllamaStore(tmp_path / "store")
    store.manifest_file("gone:q8_0").unlink()
    store.manifest_file("damaged:q8_0").write_bytes(b"{")
    before = snapshot(tmp_path)
    lines = says(fine, gone, damaged, differing).splitlines()
    assert lines[0] == "3 of 4 models are not as they were registered:"
    assert lines[1] == f"  gone:q8_0 ({store.folder})"
    assert "it was deleted or renamed" in lines[2]
    assert lines[3] == f"  damaged:q8_0 ({store.folder})"
    assert "the manifest is damaged" in lines[4]
    assert lines[5] == f"  s:q8_0 ({played.address})"
    assert lines[6] == "    manifest: abc was registered, it now has new"
    assert lines[7].startswith("Nothing has been changed. `snakemake registered` registers what was deleted")
    assert snapshot(tmp_path) == before


def test_bytes_of_a_blob_are_compared(tmp_path: Path) -> None:
    marker = registered(tmp_path, "m:q8_0")
    blob = OllamaStore(tmp_path / "store").blob_file(sha256_of(tmp_path / "m.gguf"))
    blob.unlink()
    blob.write_bytes(b"Weights" * 1000)
    assert "the blob of the model" in says(marker)
    assert "it is damaged" in says(marker)


def test_a_server_that_does_not_answer(tmp_path: Path, played: PlayedServer) -> None:
    marker = registered(tmp_path, "s:q8_0", Place("server", played.address, ""))
    content = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(content | {"host": "http://127.0.0.1:1"}), encoding="utf-8")
    assert f"  {marker}\n    no Ollama server answers at http://127.0.0.1:1" in says(marker)


def test_a_model_that_is_not_registered_yet(tmp_path: Path) -> None:
    marker = tmp_path / "registered.json"
    assert f"  {marker}\n    not registered yet: run `snakemake registered`" in says(marker)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"name": "m", "request": {"files": {}}}',
        '{"name": "m", "request": {"files": []}}',
        '{"name": "m", "request": {"files": {"m.gguf": "sha256:0"}}}',
    ],
)
def test_a_marker_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    marker = tmp_path / "registered.json"
    marker.write_text(content)
    assert f"  {marker}\n    the marker cannot be read (" in says(marker)
    assert "delete it and run `snakemake registered`" in says(marker)


def test_exit_codes(tmp_path: Path) -> None:
    marker = registered(tmp_path, "m:q8_0")
    command = [sys.executable, str(SCRIPT), "--markers", str(marker)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "m:q8_0" in done.stderr
    done = subprocess.run([*command, str(tmp_path / "none.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: 1 of 2 models are not as they were registered:" in done.stderr
    assert "Traceback" not in done.stderr
