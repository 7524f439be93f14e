"""scripts/verify.py says of every marker whether its model is as it was registered, and changes nothing.

What it says of files is tested on a whole build: tests/dag/test_corruption.py.
"""

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
from ollamake.atomic_write import write_json
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of, tree_sha256
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
        verify.main(["--results", str(markers[0].parent), "--markers", *map(str, markers)])
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
    first, second, last = [message for message in caplog.messages if not message.startswith("HTTP")]
    assert first == f"m:q8_0 ({tmp_path}/store): as registered"
    assert second == f"s:q8_0 ({played.address}): as registered"
    assert last.startswith(
        f"{tmp_path.name}: as built: 4 files by their sha256 (0.00 GB read), 0 by their seal; not sealed"
    )
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
    assert lines[0] == "not all is as it was built:"
    assert lines[1].startswith(f"  gone:q8_0 ({store.folder}): the store does not have it")
    assert lines[1].endswith("it was deleted or renamed")
    assert lines[2].startswith(f"  damaged:q8_0 ({store.folder}): the manifest is damaged")
    assert lines[3] == f"  s:q8_0 ({played.address}): manifest: abc was registered, it now has new"
    assert lines[4] == "Nothing has been changed."
    assert lines[5].startswith("`snakemake --cores 1 registered` registers what was deleted")
    assert snapshot(tmp_path) == before


def test_bytes_of_a_blob_are_compared(tmp_path: Path) -> None:
    marker = registered(tmp_path, "m:q8_0")
    blob = OllamaStore(tmp_path / "store").blob_file(sha256_of(tmp_path / "m.gguf"))
    blob.unlink()
    blob.write_bytes(b"Weights" * 1000)
    lines = says(marker).splitlines()
    assert lines[1].startswith(f"  {blob}: the blob has other bytes than its name says: its sha256 is ")
    assert lines[-1] == f"  rm -f {blob} && snakemake --cores 1 all"


def test_a_server_that_does_not_answer(tmp_path: Path, played: PlayedServer) -> None:
    marker = registered(tmp_path, "s:q8_0", Place("server", played.address, ""))
    content = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(content | {"host": "http://127.0.0.1:1"}), encoding="utf-8")
    assert f"  {marker}: no Ollama server answers at http://127.0.0.1:1" in says(marker)


def test_a_model_that_is_not_registered_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = tmp_path / "registered.json"
    assert says(marker) == "nothing is built yet: run `snakemake --cores 1 all`."
    write_json(tmp_path / "plan.json", {"a": 1})
    caplog.clear()
    with caplog.at_level("INFO"):
        assert says(marker) == ""
    assert caplog.messages == [
        f"{marker}: not registered yet",
        f"{tmp_path.name}: as built: 0 files by their sha256 (0.00 GB read), 1 by their seal",
    ]


@pytest.mark.parametrize(
    "content",
    [
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
    assert f"  {marker}: the marker cannot be read (" in says(marker)
    assert says(marker).endswith(f"  rm -f {marker} && snakemake --cores 1 {marker} all")


def test_a_marker_that_is_no_json(tmp_path: Path) -> None:
    marker = tmp_path / "registered.json"
    for content in (" ", "{"):
        marker.write_text(content)
        assert f"  {marker}: it is no JSON any more" in says(marker)
        assert says(marker).endswith(f"  rm -f {marker} && snakemake --cores 1 {marker} all")


def test_exit_codes(tmp_path: Path) -> None:
    marker = registered(tmp_path, "m:q8_0")
    command = [sys.executable, str(SCRIPT), "--results", str(tmp_path), "--markers", str(marker)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "m:q8_0" in done.stderr
    marker.write_text("{", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: not all is as it was built:" in done.stderr
    assert "Traceback" not in done.stderr


def test_llama_cpp_as_it_was_unpacked_and_built(tmp_path: Path) -> None:
    results, tools = tmp_path / "results/m", tmp_path / "llama.cpp"
    write_json(results / "plan.json", {})
    for name in ("1/source/convert.py", "1/source/src/a.cpp", "1/bin/llama-quantize"):
        (tools / name).parent.mkdir(parents=True, exist_ok=True)
        (tools / name).write_text(name, encoding="utf-8")
    write_json(tools / "1/source.json", {"tree_sha256": tree_sha256(tools / "1/source")})
    write_json(tools / "1/bin/llama-quantize.json", {"sha256": sha256_of(tools / "1/bin/llama-quantize")})
    arguments = ["--results", str(results), "--programs", str(tools)]
    verify.main(arguments)
    (tools / "1/source/__pycache__").mkdir()
    (tools / "1/source/__pycache__/convert.pyc").write_bytes(b"x")
    verify.main(arguments)
    (tools / "1/source/src/a.cpp").write_text("1/source/src/a.cpq", encoding="utf-8")
    (tools / "1/bin/llama-quantize").write_text("1/bin/llama-quantizf", encoding="utf-8")
    with pytest.raises(OllamakeError) as caught:
        verify.main(arguments)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  {tools}/1/source.json: the files in {tools}/1/source are others")
    assert lines[2].startswith(f"  {tools}/1/bin/llama-quantize: ")
    assert lines[-1].startswith(f"  rm -f {tools}/1/source.json ")
