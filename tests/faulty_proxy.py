"""An HTTP proxy in front of a real server that plays the faults of a network and of a server, where a test asks for them.

It passes bytes on as they come, in both directions, and the end of a connection, too: a client that goes away goes away
for the server. Each connection carries one request.
"""

from __future__ import annotations

import re
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

_PIECE = 64 << 10
"""Bytes read at once; also the most that waits in the proxy's sockets, so that what is cut off has not long been sent."""


@dataclass(frozen=True)
class Answer:
    """Read the request and answer it with a status, as Ollama words its errors; the server never sees it."""

    status: int
    error: str = "played by the test"


@dataclass(frozen=True)
class Hang:
    """Never answer; of the body so many bytes are read (None: all of it)."""

    after: int | None = None


@dataclass(frozen=True)
class Cut:
    """Let so many bytes of the request's body through, then reset both connections."""

    after: int = 0


@dataclass(frozen=True)
class CutAnswer:
    """Let the whole request through and so many bytes of the answer, then reset the client's connection."""

    after: int = 0


@dataclass(frozen=True)
class Call:
    """Call a function when so many bytes of the request's body are through (0: before the server sees any of it)."""

    function: Callable[[], object]
    after: int = 0


Action = Answer | Hang | Cut | CutAnswer | Call


@dataclass
class _Fault:
    method: str
    prefix: str
    action: Action
    times: int | None
    after: int


@dataclass
class _Request:
    method: str
    path: str
    head: bytes
    body: int = 0


class FaultyProxy:
    """What a test sees of the proxy."""

    def __init__(self, upstream: str, port: int) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.address = f"http://127.0.0.1:{port}"
        self.failures: list[Exception] = []
        """What functions of Call have raised."""
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._seen: list[_Request] = []

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """(method, path, bytes of the body that have arrived) of every request so far."""
        with self._lock:
            return [(request.method, request.path, request.body) for request in self._seen]

    def bodies(self, method: str, prefix: str) -> int:
        """Return the bytes that have come with requests of a kind."""
        return sum(size for verb, path, size in self.requests if verb == method and path.startswith(prefix))

    def count(self, method: str, prefix: str) -> int:
        """Return how many requests of a kind have come."""
        return sum(verb == method and path.startswith(prefix) for verb, path, _ in self.requests)

    def forget(self) -> None:
        """Begin a new list of requests."""
        with self._lock:
            self._seen = []

    def fault(self, method: str, prefix: str, action: Action, times: int | None = 1, after: int = 0) -> None:
        """Play a fault on requests of a kind: the first ``after`` pass, the next ``times`` do not (None: for ever)."""
        with self._lock:
            self._faults.append(_Fault(method, prefix, action, times, after))

    def heal(self) -> None:
        """Play no fault any more."""
        with self._lock:
            self._faults = []

    def take(self, request: _Request) -> Action | None:
        """Enter a request and return what is played on it."""
        with self._lock:
            self._seen.append(request)
            for fault in self._faults:
                if fault.method != request.method or not request.path.startswith(fault.prefix) or fault.times == 0:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault.action
        return None


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of the server at ``upstream``; what a function of Call raised is raised at the end."""
    with _Listener(("127.0.0.1", 0), _Connection) as listener:
        proxy = listener.proxy = FaultyProxy(upstream, listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            listener.shutdown()
            thread.join()
    if proxy.failures:
        raise proxy.failures[0]


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: FaultyProxy

    def server_bind(self) -> None:
        # Inherited by each connection.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        super().server_bind()


class _Connection(socketserver.BaseRequestHandler):
    server: _Listener
    request: socket.socket

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            self._handle()

    def _handle(self) -> None:
        head, begun = self._head()
        if not head:
            return
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        length = re.search(rb"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
        request = _Request(method, path, _one_request(head))
        action = self.server.proxy.take(request)
        match action:
            case Answer():
                self._read(request, begun, int(length[1]) if length else 0)
                self._answer(request, action)
            case Hang():
                limit = action.after
                self._read(request, begun, None if limit is None else limit)
                self.server.proxy.over.wait()
            case Call(after=0):
                self._call(action)
                self._pass_on(request, begun, None)
            case _:
                self._pass_on(request, begun, action)

    def _head(self) -> tuple[bytes, bytes]:
        content = b""
        while b"\r\n\r\n" not in content:
            piece = self.request.recv(_PIECE)
            if not piece:
                return b"", b""
            content += piece
        head, _, begun = content.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", begun

    def _read(self, request: _Request, begun: bytes, limit: int | None) -> None:
        """Read a body up to a limit, or until the client goes away."""
        request.body = len(begun)
        while (limit is None or request.body < limit) and not self.server.proxy.over.is_set():
            if select.select([self.request], [], [], 0.05)[0]:
                piece = self.request.recv(_PIECE)
                if not piece:
                    return
                request.body += len(piece)

    def _answer(self, request: _Request, action: Answer) -> None:
        content = b"" if request.method == "HEAD" else f'{{"error":"{action.error}"}}'.encode()
        self.request.sendall(
            f"HTTP/1.1 {action.status} {HTTPStatus(action.status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
            + content
        )

    def _call(self, action: Call) -> None:
        try:
            action.function()
        except Exception as error:
            self.server.proxy.failures.append(error)

    def _pass_on(self, request: _Request, begun: bytes, action: Action | None) -> None:
        with socket.create_connection(self.server.proxy.upstream, timeout=600) as upstream:
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
            if isinstance(action, Cut) and action.after == 0:
                self._reset(self.request, upstream)
                return
            upstream.sendall(request.head)
            is_reading = self._send(request, begun, action, upstream) if begun else True
            answered = 0
            while not self.server.proxy.over.is_set():
                ready, _, _ = select.select([upstream, *([self.request] if is_reading else [])], [], [], 0.05)
                if upstream in ready:
                    try:
                        piece = upstream.recv(_PIECE)
                    except ConnectionError:
                        self._reset(self.request)
                        return
                    if not piece:
                        self._end(is_reading)
                        return
                    if isinstance(action, CutAnswer) and answered + len(piece) >= action.after:
                        self.request.sendall(piece[: action.after - answered])
                        self._reset(self.request)
                        return
                    answered += len(piece)
                    self.request.sendall(piece)
                elif self.request in ready:
                    piece = self.request.recv(_PIECE)
                    if not piece:
                        return
                    is_reading = self._send(request, piece, action, upstream)

    def _send(self, request: _Request, piece: bytes, action: Action | None, upstream: socket.socket) -> bool:
        """Pass on a piece of a body; return whether more of it is wanted."""
        before = request.body
        request.body += len(piece)
        try:
            if isinstance(action, Cut | Call) and before < action.after <= request.body:
                upstream.sendall(piece[: action.after - before])
                piece = piece[action.after - before :]
                if isinstance(action, Cut):
                    self._reset(self.request, upstream)
                    raise ConnectionAbortedError
                self._call(action)
            upstream.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            # The server has closed; its answer may be there already.
            return False
        return True

    def _end(self, is_reading: bool) -> None:
        """End a connection after the answer; while a body is still coming, as Go's server does: half, then whole."""
        if not is_reading:
            self.request.shutdown(socket.SHUT_WR)
            self.server.proxy.over.wait(0.5)

    def _reset(self, *connections: socket.socket) -> None:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def _one_request(head: bytes) -> bytes:
    """Ask for the connection to end with the answer."""
    lines = [line for line in head.rstrip(b"\r\n").split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])
