"""A store has no server of its own: one is started on it for as long as it is needed."""

import sys
from pathlib import Path

import pytest
from played_server import playing

from ollamake.errors import OllamakeError
from ollamake.ollama_server import ServerUnreachable
from ollamake.store_server import server_of, serving


def ollama_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ollama").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_serving_without_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(OllamakeError, match=r"`ollama` is not on PATH.*OLLAMA_MODELS="),
        serving(tmp_path, tmp_path / "log"),
    ):
        pass


def test_serving_with_an_ollama_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama_program(tmp_path, "echo the reason; exit 1", monkeypatch)
    with (
        pytest.raises(OllamakeError, match=r"did not start\. It said:\s+the reason"),
        serving(tmp_path, tmp_path / "l"),
    ):
        pass


SERVES = """\
import http.server, os, pathlib
pathlib.Path(os.environ["OLLAMA_MODELS"], "pid").write_text(str(os.getpid()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "0.33.0"}')
host, port = os.environ["OLLAMA_HOST"].removeprefix("http://").split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


def test_a_store_is_served_as_long_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serves.py").write_text(SERVES)
    ollama_program(tmp_path, f'test "$1" = serve && exec "{sys.executable}" "{tmp_path}/serves.py"', monkeypatch)
    (tmp_path / "store").mkdir()
    with server_of({"target": "store", "store": str(tmp_path / "store"), "name": "m", "gguf": {"size": 1}}) as server:
        assert server.version() == "0.33.0"
        process = Path("/proc", (tmp_path / "store/pid").read_text())
        assert process.exists()
    assert not process.exists()
    with pytest.raises(ServerUnreachable):
        server.version()


def test_a_model_on_a_server_is_asked_there() -> None:
    with playing() as played:
        marker = {"target": "server", "host": played.address, "name": "m", "gguf": {"size": 1}}
        with server_of(marker) as server:
            assert server.address == played.address
    with pytest.raises(ServerUnreachable), server_of(marker):
        pass
