"""The client's behaviour on faults, against a stand-in server that plays them (the real one is in tests/e2e)."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ollamake import ollama_server
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_server import OllamaServer
from ollamake.registration import register


class StandIn(BaseHTTPRequestHandler):
    """Just enough of Ollama's API to play its faults; answers are set on the server object."""

    protocol_version = "HTTP/1.1"

    def _play(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        state: dict[str, Any] = self.server.state  # type: ignore[attr-defined]
        state["asked"].append((self.command, self.path, body))
        status, answer = 404, {"error": "not found"}
        for (method, prefix), answers in state["answers"].items():
            if method == self.command and self.path.startswith(prefix):
                status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
                break
        content = b"" if self.command == "HEAD" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_HEAD = _play

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(ollama_server, "_FIRST_PAUSE", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.state = {"asked": [], "answers": {("GET", "/api/version"): [(200, {"version": "9.9"})]}}  # type: ignore[attr-defined]
    server.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


def answers_for(digest: str, system: str = "S") -> dict[Any, Any]:
    modelfile = f"# x\nFROM /models/blobs/sha256-{digest}\n"
    shown = {
        "modelfile": modelfile,
        "system": system,
        "parameters": 'top_k                          3\nstop    "<a>\\n"',
    }
    return {
        ("HEAD", "/api/blobs"): [(404, None), (200, None)],
        ("POST", "/api/blobs"): [(201, None)],
        ("POST", "/api/create"): [(200, {"status": "success"})],
        ("POST", "/api/show"): [(200, shown)],
        ("GET", "/api/tags"): [(200, {"models": [{"name": "M:Q8_0", "digest": "abc"}]})],
        ("GET", "/api/ps"): [(200, {"models": [{"name": "m:q8_0"}]})],
        ("POST", "/api/generate"): [(200, {})],
    }


def go(stand_in: Any, gguf: Path, target: str = "server") -> dict[str, Any]:
    record = {"sha256": sha256_of(gguf), "size": gguf.stat().st_size}
    request = CreateRequest("m:q8_0", "m.gguf", "S", None, {"top_k": 3, "stop": ["<a>\n"]})
    return register(request, gguf, record, target, stand_in.address, gguf.parent / "store")


def test_uploads_creates_verifies_and_unloads(stand_in: Any, gguf: Path) -> None:
    stand_in.state["answers"] |= answers_for(sha256_of(gguf))
    marker = go(stand_in, gguf, "auto")
    assert (marker["target"], marker["host"], marker["server_version"]) == ("server", stand_in.address, "9.9")
    assert marker["manifest_digest"] == "abc"
    asked = [(method, path) for method, path, _ in stand_in.state["asked"]]
    assert ("POST", f"/api/blobs/sha256:{sha256_of(gguf)}") in asked
    assert ("POST", "/api/generate") in asked
    uploaded = next(
        body for method, path, body in stand_in.state["asked"] if (method, path[:10]) == ("POST", "/api/blobs")
    )
    assert uploaded == gguf.read_bytes()


def test_a_blob_that_is_there_is_not_sent_again(stand_in: Any, gguf: Path) -> None:
    stand_in.state["answers"] |= answers_for(sha256_of(gguf)) | {("HEAD", "/api/blobs"): [(200, None)]}
    go(stand_in, gguf)
    assert not [path for method, path, _ in stand_in.state["asked"] if method == "POST" and "blobs" in path]


def test_a_passing_failure_is_tried_again(stand_in: Any, gguf: Path) -> None:
    stand_in.state["answers"] |= answers_for(sha256_of(gguf))
    stand_in.state["answers"][("POST", "/api/create")] = [(500, {"error": "busy"}), (200, {"status": "success"})]
    assert go(stand_in, gguf)["name"] == "m:q8_0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({("POST", "/api/create"): [(400, {"error": "invalid model name"})]}, "refuses: 400 invalid model name"),
        ({("POST", "/api/create"): [(500, {"error": "no space left"})]}, "refuses: 500 no space left"),
        ({("POST", "/api/create"): [(200, {"status": "writing manifest"})]}, "expected 'success'"),
        (answers_for("0" * 64), "weights: asked for sha256"),
        ({("GET", "/api/tags"): [(200, {"models": []})]}, "the list of models does not have it"),
        ({("HEAD", "/api/blobs"): [(404, None)]}, "the blob of the weights is not there"),
    ],
)
def test_what_differs_is_named(stand_in: Any, gguf: Path, change: dict[Any, Any], words: str) -> None:
    stand_in.state["answers"] |= answers_for(sha256_of(gguf)) | change
    with pytest.raises(OllamakeError) as caught:
        go(stand_in, gguf)
    assert words in str(caught.value)


def test_another_system_prompt_is_named(stand_in: Any, gguf: Path) -> None:
    stand_in.state["answers"] |= answers_for(sha256_of(gguf), system="S ")
    with pytest.raises(OllamakeError, match=r"system: asked for 'S', it has 'S '"):
        go(stand_in, gguf)


def test_no_server(gguf: Path) -> None:
    with pytest.raises(OllamakeError, match=r"no Ollama server answers at http://127\.0\.0\.1:1 .*ollama serve"):
        OllamaServer("127.0.0.1:1").version()


def test_something_else_at_the_address(stand_in: Any) -> None:
    stand_in.state["answers"] = {("GET", "/"): [(200, ["not Ollama"])]}
    with pytest.raises(OllamakeError, match="no Ollama server answers"):
        OllamaServer(stand_in.address).version()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (None, "http://127.0.0.1:11434"),
        ("example.com", "http://example.com:11434"),
        ("https://example.com/path", "https://example.com:443/path"),
        ("[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_addresses(host: str | None, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert OllamaServer(host).address in (address, address.replace(":443", ""))
