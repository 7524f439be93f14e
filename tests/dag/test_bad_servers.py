"""Servers that are no Ollama, or not one that can be used: each is refused in one message with the address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from bad_inputs import refused
from campaigns import one_in
from dag_build import Build

pytestmark = pytest.mark.faults

NOBODY = "no Ollama server answers at ADDRESS"
HTML = b"<!DOCTYPE html><title>It works!</title>"


def answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    """Return an HTTP answer to whatever was asked."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


CASES: dict[str, tuple[bytes | None, list[str]]] = {
    "hangs": (None, [NOBODY + " (silent for too long", "ollama.host"]),
    "closes": (b"", [NOBODY]),
    "answers a web page": (answer("200 OK", HTML, "text/html"), [NOBODY]),
    "does not know the way": (answer("404 Not Found", HTML, "text/html"), [NOBODY, "404"]),
    "fails": (answer("500 Internal Server Error", b'{"error": "disk"}'), [NOBODY, "500"]),
    "asks for a password": (answer("401 Unauthorized", b'{"error": "unauthorized"}'), [NOBODY, "401 Unauthorized"]),
    "answers a list": (answer("200 OK", b"[]"), [NOBODY]),
    "answers no JSON": (answer("200 OK", b"{\xff"), [NOBODY]),
    "speaks something else": (b"SSH-2.0-OpenSSH_9.2\r\n", [NOBODY]),
    "is too old": (answer("200 OK", b'{"version": "0.1.20"}'), ["Ollama at ADDRESS is 0.1.20; expected 0.5.5", "Update it"]),
    "has no version": (answer("200 OK", b'{"version": 7}'), [NOBODY + " (its version is 7"]),
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[Callable[[bytes | None], str]]:
    """Return a function that starts a server which says one thing to everybody (None: nothing), and returns its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def serve(said: bytes | None) -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                held.append(connection)
                if said is not None:
                    connection.recv(65536)
                    connection.sendall(said)
                    connection.close()

        def start(said: bytes | None) -> str:
            threading.Thread(target=serve, args=(said,), daemon=True).start()
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.parametrize("case", one_in(6, CASES))
def test_refused(fresh: Build, case: str, server: Callable[[bytes | None], str]) -> None:
    said, words = CASES[case]
    address = server(said)
    fresh.config["ollama"] = {"target": "server", "host": address, "timeout": 2}
    fresh.write_config()
    refused(fresh, [word.replace("ADDRESS", address) for word in words])


def test_nobody_there(fresh: Build) -> None:
    fresh.config["ollama"] = {"target": "server", "host": "http://127.0.0.1:1"}
    fresh.write_config()
    refused(fresh, ["no Ollama server answers at http://127.0.0.1:1", "ollama serve"])


def test_no_address(fresh: Build) -> None:
    fresh.config["ollama"] = {"target": "server", "host": "http://[::1"}
    fresh.write_config()
    refused(fresh, ["ollama.host: 'http://[::1' is not an address"])
