"""HTTP as Go's server and gin do it: bodies in chunks, streams of lines, answers before a body is read."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from creation import Refused
from go_text import go_json
from store import CHUNK

log = logging.getLogger("ollama-0.33")

_MOST_DRAINED = 256 << 10
"""Bytes of a body that Go's server reads when nobody wants it; with more it closes the connection."""


JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"
"""What is sent from a channel of lines has no charset, even if it is one object."""


class Connection(BaseHTTPRequestHandler):
    """One connection, without what is asked over it."""

    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        """Take a request, or the end of a client that went away in the middle of one."""
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError, EOFError):
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request as everything else is logged."""
        log.info("%s %s", self.client_address[0], format % arguments)

    def send_before_the_body(self, status: int, content: bytes = b"", kind: str = "") -> None:
        """Answer without reading the body, as Go's server does: with a long one to come the connection is closed."""
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" not in self.headers.get("Transfer-Encoding", "") and length <= _MOST_DRAINED:
            b"".join(self.body())
            self.send(status, content, kind)
        else:
            self.send_and_close(status, content, kind)

    def send_and_close(self, status: int, content: bytes = b"", kind: str = "") -> None:
        """Answer in the middle of the body, and leave the client the half second to read it that Go's server does."""
        self.close_connection = True
        self.send(status, content, kind)
        self.connection.shutdown(socket.SHUT_WR)
        time.sleep(0.5)

    def body(self) -> Iterator[bytes]:
        """Yield the body as it comes. Raises EOFError if it ends too early."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := self._chunk_size():
                yield from self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._exactly(int(self.headers.get("Content-Length") or 0))

    def _chunk_size(self) -> int:
        line = self.rfile.readline()
        if not line.strip():
            raise EOFError
        return int(line.split(b";")[0], 16)

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            content = self.rfile.read1(min(size, CHUNK))  # type: ignore[attr-defined]
            if not content:
                raise EOFError
            size -= len(content)
            yield content

    def stream(self, lines: Iterator[dict[str, Any]], *, holds_on: bool = False) -> None:
        """Send lines as they come; a failure before the first one still has its status.

        With ``holds_on`` the work stops where it is when the client goes away, with its files: Ollama's create waits for
        ever to report its next status.
        """
        try:
            first = next(lines, None)
        except Refused as error:
            self.error(error, kind=PLAIN_JSON)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while first is not None:
                self._chunk(first, holds_on=holds_on)
                first = next(lines, None)
        except Refused as error:
            self._chunk({"error": str(error)})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, line: dict[str, Any], *, holds_on: bool = False) -> None:
        content = f"{go_json(line)}\n".encode()
        if holds_on and select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            log.info("the client of a create is gone; its work is never ended")
            threading.Event().wait()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def answer(self, answer: dict[str, Any], kind: str = JSON) -> None:
        """Send an object."""
        self.send(200, go_json(answer).encode(), kind)

    def error(self, error: Refused, kind: str = JSON) -> None:
        """Send a refusal."""
        self.send(error.status, error.as_json, kind)

    def send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
