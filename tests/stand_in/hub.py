"""A stand-in for the Hugging Face hub and its CDN: two servers on 127.0.0.1 that answer huggingface_hub as these do.

What it speaks: /api/models/ORG/REPO[/revision/REVISION] (with ?blobs=true: sizes and digests), /api/models/ORG/REPO/tree/
REVISION, and /ORG/REPO/resolve/REVISION/FILE, which redirects to a path of its own for small files and to signed addresses on
the CDN for weights, which are in LFS; ranges, ETags (git's SHA-1 of a blob, SHA-256 in LFS), the headers X-Repo-Commit,
X-Linked-Size, X-Linked-ETag, X-Error-Code and X-Error-Message. It counts what it sends, by request, and plays faults. That it
is near enough is tested with huggingface_hub's own client (test_hub_shape.py, test_hub_pin.py).
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from stand_in.hub_repository import Model, Weights, blob, etag, is_in_lfs, part, size_of, tree_entry

TOKEN = "hf_StandInTokenThatMayReadEverything"
_SIGNATURE = "X-Signature=standin"
_PIECE = 1 << 16


@dataclass
class Fault:
    """What happens to the first ``times`` requests whose method and path (``GET /org/...``) match ``pattern``."""

    pattern: str
    kind: str
    """status, redirect; cut (the connection, after ``after`` bytes), short (a whole answer of ``after`` bytes), hang, whole
    (Range is ignored), whole cut (both), shifted (another range), endless (more than announced, in chunks), trickle (a byte
    now and then), slow (``rate`` bytes a second), corrupt (one bit of the file's byte ``after`` is wrong), resized (``after``
    bytes more than there are)."""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    after: int = 0
    rate: int = 1_000_000
    times: int = 1_000_000


@dataclass
class Request:
    """What came, and how much of an answer went into the connection."""

    server: str
    """hub or cdn"""
    method: str
    path: str
    authorization: str | None
    range: str | None
    sent: int = 0
    """Bytes of the body."""


class HubStandIn:
    """Both servers, what they have and what they saw."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.models: dict[str, Model] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.written = 0
        self.most_at_once = 0
        """Requests that were under way together."""
        self.under_way = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.hub = _Server(self, "hub")
        self.cdn = _Server(self, "cdn")
        self.address = f"http://127.0.0.1:{self.hub.server_port}"
        self.cdn_address = f"http://127.0.0.1:{self.cdn.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.hub.socket = context.wrap_socket(self.hub.socket, server_side=True, do_handshake_on_connect=False)
            self.address = self.address.replace("http:", "https:")

    @property
    def sent(self) -> int:
        """Bytes of bodies that went into a connection, once no request is under way: a client has a piece before it counts."""
        deadline = time.monotonic() + 10
        while self.under_way and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.written

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes this the hub of a process, with a cache of its own in ``home`` and no token."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), ""),
        }

    def asked(self, server: str) -> list[Request]:
        """Return the requests that one of the two saw."""
        return [request for request in self.requests if request.server == server]

    def fault(self, line: str) -> Fault | None:
        """Return the fault that a request meets, if any."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def hub_stand_in(certificate: Path | None = None) -> Iterator[HubStandIn]:
    """Yield a running stand-in; over TLS with a file of certificate and key."""
    stand_in = HubStandIn(certificate)
    servers = (stand_in.hub, stand_in.cdn)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield stand_in
    finally:
        stand_in.stopping.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, stand_in: HubStandIn, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.stand_in = stand_in
        self.name = name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not like a certificate, is none of a server's errors."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30
    server: _Server
    seen: Request

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet: the requests are recorded."""

    def setup(self) -> None:
        # What a client does not take shall not have been sent.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
        super().setup()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        stand_in, headers = self.server.stand_in, self.headers
        path = unquote(urlsplit(self.path).path)
        self.seen = Request(self.server.name, self.command, path, headers.get("Authorization"), headers.get("Range"))
        with stand_in.lock:
            stand_in.requests.append(self.seen)
            stand_in.under_way += 1
            stand_in.most_at_once = max(stand_in.most_at_once, stand_in.under_way)
        try:
            self._answer_to(path, stand_in)
        finally:
            with stand_in.lock:
                stand_in.under_way -= 1

    def _answer_to(self, path: str, stand_in: HubStandIn) -> None:
        fault = stand_in.fault(f"{self.server.name} {self.command} {path}")
        if fault is not None and fault.kind == "hang":
            stand_in.stopping.wait(30)
            self.close_connection = True
        elif fault is not None and fault.kind == "cut" and "/resolve/" in path:
            # There is no body to cut in a redirect.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault is not None and fault.kind in ("status", "redirect"):
            self._send(fault.status, fault.body, dict(fault.headers))
        elif self.server.name == "cdn":
            self._cdn(path, fault)
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"), fault)
        elif path.startswith("/api/resolve-cache/models/"):
            org, repo, commit, name = path.removeprefix("/api/resolve-cache/models/").split("/", 3)
            model = self._readable(f"{org}/{repo}")
            found = model.at(commit) if model else None
            if found is not None:
                content = found[1][name]
                self._file(content, fault, {"X-Repo-Commit": commit, "ETag": etag(name, content)})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+(?:/pr/\d+)?)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._refuse(404, None, "Not found")

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _readable(self, repo: str) -> Model | None:
        """Return a model that this client may see; otherwise answer as the hub does and return None."""
        token = self.headers.get("Authorization")
        model = self.server.stand_in.models.get(repo)
        if token not in (None, f"Bearer {TOKEN}", "Bearer hf_OfAnotherAccount"):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif model is None or (model.private and token != f"Bearer {TOKEN}"):
            # Whoever has no token is told to get one, whether there is such a repository or not.
            if token is None:
                self._refuse(401, None, "Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            return model
        return None

    def _info(self, path: str, fault: Fault | None) -> None:
        repo, _, rest = path.partition("/tree/") if "/tree/" in path else path.partition("/revision/")
        model = self._readable(repo)
        if model is None:
            return
        found = model.at(rest or "main")
        if found is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest}")
            return
        commit, files = found
        asked = parse_qs(urlsplit(self.path).query)
        if "/tree/" in path:
            answer: Any = [tree_entry(name, content) for name, content in files.items()]
        else:
            with_blobs = asked.get("blobs") == ["true"]
            answer = {"_id": "5e0000000000000000000000", "id": repo, "sha": commit, "private": model.private}
            answer |= {"gated": "manual" if model.gated else False, "lastModified": model.modified}
            answer["siblings"] = [
                {"rfilename": name} | (blob(name, content) if with_blobs else {}) for name, content in files.items()
            ]
            if "expand" in asked:
                answer = {key: answer[key] for key in ("_id", "id", *asked["expand"])}
        self._file(json.dumps(answer).encode(), fault, {})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        model = self._readable(repo)
        if model is None:
            return
        commit, files = model.at(revision) or ("", {})
        if not commit:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif name not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif model.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 403 if "Authorization" in self.headers else 401
            self._refuse(status, "GatedRepo", f"Access to model {repo} is restricted.")
        else:
            content, tag = files[name], etag(name, files[name])
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if is_in_lfs(name, content):
                headers |= {"X-Linked-Size": str(size_of(content)), "X-Linked-ETag": tag, "ETag": tag}
                address = f"{self.server.stand_in.cdn_address}/{repo}/{name}"
                headers["Location"] = f"{address}?commit={commit}&{_SIGNATURE}"
                self._send(302, b"Found. Redirecting", headers)
            else:
                headers |= {"ETag": tag, "X-Linked-Size": str(size_of(content))}
                headers["Location"] = f"/api/resolve-cache/models/{repo}/{commit}/{name}"
                self._send(307, b"Temporary Redirect", headers)

    def _cdn(self, path: str, fault: Fault | None) -> None:
        org, repo, name = path.lstrip("/").split("/", 2)
        if _SIGNATURE not in self.path or "Authorization" in self.headers:
            # S3 refuses two ways of signing in at once.
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
            return
        commit = parse_qs(urlsplit(self.path).query)["commit"][0]
        found = self.server.stand_in.models[f"{org}/{repo}"].at(commit)
        if found is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})
            return
        content = found[1][name]
        self._file(content, fault, {"ETag": etag(name, content), "Accept-Ranges": "bytes"})

    def _file(self, content: bytes | Weights, fault: Fault | None, headers: dict[str, str]) -> None:
        """Send a file or the range of it that is asked for, as RFC 9110, 14 has it."""
        kind, size = fault.kind if fault else None, size_of(content)
        if fault is not None and kind == "corrupt" and isinstance(content, bytes):
            wrong = bytes([content[fault.after] ^ 1])
            content = content[: fault.after] + wrong + content[fault.after + 1 :]
        elif fault is not None and kind == "resized" and isinstance(content, bytes):
            content += bytes(fault.after)
            size = len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last, status = 0, size - 1, 200
        if asked and kind not in ("whole", "whole cut"):
            first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            if first >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            status = 206
            if kind == "shifted":
                first, last = first + 1, last + 1
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        length = last - first + 1
        if kind == "short" and fault:
            length = min(length, fault.after)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "endless":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "endless":
            for _ in range(10_000):
                self._write(b"%x\r\n%s\r\n" % (_PIECE, bytes(_PIECE)))
            self.close_connection = True
        elif kind in ("cut", "whole cut") and fault:
            self._write(part(content, first, min(length, fault.after)))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "trickle":
            for position in range(length):
                self._write(part(content, first + position, 1))
                time.sleep(0.02)
        elif kind == "slow" and fault:
            piece = max(1, min(_PIECE, fault.rate // 50))
            for position in range(first, first + length, piece):
                if self.server.stand_in.stopping.wait(piece / fault.rate):
                    break
                self._write(part(content, position, min(piece, first + length - position)))
        else:
            for position in range(first, first + length, _PIECE):
                self._write(part(content, position, min(_PIECE, first + length - position)))

    def _write(self, piece: bytes) -> None:
        self.wfile.write(piece)
        with self.server.stand_in.lock:
            self.server.stand_in.written += len(piece)
            self.seen.sent += len(piece)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(body)
