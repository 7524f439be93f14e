"""A server that plays what Ollama may answer, faults included; a real one is in tests/e2e."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any] | Callable[[bytes], tuple[int, Any]]
"""Status and body: bytes as they are, else JSON; or a function of the request's body that returns both."""

HANG_UP: Answer = (0, None)
"""The connection ends without an answer."""


class Cut(bytes):
    """The beginning of a body, after which the connection ends."""


class PlayedServer(ThreadingHTTPServer):
    """Answers by method and beginning of the path; each list is gone through once, its last answer repeated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[tuple[str, str], list[Answer]] = {("GET", "/api/version"): [(200, {"version": "9.9"})]}
        self.requests: list[tuple[str, str, bytes]] = []

    def asked(self, method: str, path: str) -> list[bytes]:
        """Return the bodies of the requests to a path."""
        return [body for one, other, body in self.requests if one == method and other.startswith(path)]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the next answer, 404 where none is set."""
        self.requests.append((method, path, body))
        for (one, prefix), answers in self.answers.items():
            if one == method and path.startswith(prefix):
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                return answer(body) if callable(answer) else answer
        return 404, {"error": "not found"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PlayedServer

    def _play(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.server.answer(self.command, self.path, body)
        if status == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        content = b"" if self.command == "HEAD" else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + isinstance(answer, Cut)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = isinstance(answer, Cut)

    do_GET = do_POST = do_HEAD = _play

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def playing() -> Iterator[PlayedServer]:
    """Run a server for as long as the block lasts."""
    with PlayedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
