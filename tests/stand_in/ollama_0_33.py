"""A stand-in for Ollama 0.33: a server that replays what that version does with models, for tests of clients.

    python tests/stand_in/ollama_0_33.py --host 127.0.0.1 --port 0 --models DIR --llama-quantize PATH [--llama-server PATH]

Source: github.com/ollama/ollama at v0.33.0-rc2. It answers version, tags, ps, show, create, copy, delete, blobs, generate and
chat, with that version's status codes, messages and files; weights go through the real llama-quantize, and answers
come from the real llama-server. Each module says what it leaves out; there is no registry, no pull, push, embed or /v1.
It reads OLLAMA_NOPRUNE, OLLAMA_KEEP_ALIVE, OLLAMA_GO_TEMPLATE and OLLAMA_CONTEXT_LENGTH.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from answers import Answers
from connection import JSON, PLAIN_JSON, Connection
from creation import Creation, Refused
from gguf_header import BadGguf
from go_templates import NoGo, TemplateRefused
from go_text import moment, parsed_duration, quoted
from loaded_model import Model, listed, read_model, show
from model_name import InvalidName, Name, NoName, OfTheCloud, parsed_name, referred_name
from runners import Runners
from store import FileTrouble, InvalidDigest, Store

VERSION = "0.33.0"

log = logging.getLogger("ollama-0.33")


class Ollama(ThreadingHTTPServer):
    """The server and what its requests share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: Store, quantize: Path, runners: Runners) -> None:
        super().__init__(address, Handler)
        self.store = store
        self.quantize = quantize
        self.runners = runners
        self.answers = Answers(runners)


class Handler(Connection):
    """One connection."""

    server: Ollama

    def do_GET(self) -> None:
        """Answer what is asked without a body."""
        if self.path == "/":
            self.send(200, b"Ollama is running", "text/plain; charset=utf-8")
        elif self.path == "/api/version":
            self.answer({"version": VERSION})
        elif self.path == "/api/tags":
            try:
                self.answer({"models": listed(self.server.store)})
            except NoGo as error:
                self.error(Refused(500, str(error)))
        elif self.path == "/api/ps" and self.command == "GET":
            self.answer({"models": [self._loaded(runner) for runner in self.server.runners.loaded()]})
        else:
            self.send(404, b"404 page not found", "text/plain")

    def do_HEAD(self) -> None:
        """Answer whether a blob is there, and what GET answers without its body."""
        if not self.path.startswith("/api/blobs/"):
            self.do_GET()
            return
        try:
            found = self.server.store.blob(self._digest()).exists()
        except InvalidDigest:
            self.error(Refused(400, "invalid digest format"))
            return
        if found:
            self.send(200, b"", "")
        else:
            self.error(Refused(404, f"blob {quoted(self._digest())} not found"))

    def do_POST(self) -> None:
        """Answer what changes or runs something."""
        actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "/api/create": self._create,
            "/api/show": self._show,
            "/api/copy": self._copy,
            "/api/generate": self._generate,
            "/api/chat": self._chat,
        }
        if self.path.startswith("/api/blobs/"):
            self._create_blob()
        elif self.path in actions:
            self._with_body(actions[self.path])
        else:
            b"".join(self.body())
            self.send(404, b"404 page not found", "text/plain")

    def do_DELETE(self) -> None:
        """Remove a model."""
        self._with_body(self._delete)

    def _with_body(self, action: Callable[[dict[str, Any]], None]) -> None:
        try:
            content = b"".join(self.body())
            if not content.strip():
                raise Refused(400, "missing request body")
            request = json.loads(content)
            if not isinstance(request, dict):
                raise Refused(400, "json: cannot unmarshal into Go value")
            action(request)
        except json.JSONDecodeError as error:
            is_cut = error.pos >= len(error.doc.rstrip())
            self.error(Refused(400, "unexpected EOF" if is_cut else f"invalid character: {error}"))
        except Refused as error:
            self.error(error)
        except (FileTrouble, BadGguf, NoGo, TemplateRefused, ValueError) as error:
            self.error(Refused(500, str(error)))

    # -- blobs

    def _create_blob(self) -> None:
        store, digest = self.server.store, self._digest()
        try:
            if store.blob(digest).exists():
                self.send_before_the_body(200)
                return
            layer = store.add(self.body(), "")
            if layer.digest != digest:
                raise Refused(400, f"digest mismatch, expected {quoted(digest)}, got {quoted(layer.digest)}")
            self.send(201, b"", "")
        except InvalidDigest:
            self.send_before_the_body(400, Refused(400, "invalid digest format").as_json, JSON)
        except (EOFError, ConnectionError):
            self.close_connection = True
            self.error(Refused(500, "unexpected EOF"))
        except FileTrouble as error:
            self.send_and_close(500, Refused(500, str(error)).as_json, JSON)
        except Refused as error:
            self.error(error)

    def _digest(self) -> str:
        return self.path.removeprefix("/api/blobs/").replace("%3A", ":")

    # -- models

    def _create(self, request: dict[str, Any]) -> None:
        statuses = Creation(request, self.server.store, self.server.quantize).run()
        if request.get("stream") is False:
            try:
                *_, last = statuses
                self.answer(last, PLAIN_JSON)
            except Refused as error:
                self.error(error, PLAIN_JSON)
        else:
            self.stream(statuses, holds_on=True)

    def _show(self, request: dict[str, Any]) -> None:
        asked = request.get("model") or request.get("name")
        if not asked:
            raise Refused(400, "model is required")
        name = self._referred(asked, nothing=(400, "model is required"))
        try:
            answer = show(read_model(self.server.store, name), verbose=bool(request.get("verbose")))
        except FileTrouble as error:
            if error.is_missing:
                raise Refused(404, f"model '{name.shortest}' not found") from error
            raise
        self.answer(answer)

    def _copy(self, request: dict[str, Any]) -> None:
        names = []
        for key in ("source", "destination"):
            try:
                names.append(self.server.store.existing_name(parsed_name(request.get(key) or "")))
            except InvalidName:
                raise Refused(400, f"{key} {quoted(request.get(key) or '')} is invalid") from None
        source, target = map(self.server.store.manifest_path, names)
        if source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                content = source.read_bytes()
            except FileNotFoundError:
                raise Refused(404, f"model {quoted(request['source'])} not found") from None
            target.write_bytes(content)
        self.send(200, b"", "")

    def _delete(self, request: dict[str, Any]) -> None:
        asked = request.get("model") or request.get("name") or ""
        store = self.server.store
        try:
            name = store.existing_name(referred_name(asked))
            manifest = store.manifest(name)
        except NoName:
            raise Refused(400, "model is required") from None
        except (InvalidName, OfTheCloud):
            raise Refused(400, f"name {quoted(asked)} is invalid") from None
        except FileTrouble as error:
            if error.is_missing:
                raise Refused(404, f"model '{asked}' not found") from error
            raise
        store.remove_manifest(manifest)
        store.remove_unused(manifest.all_layers)
        self.send(200, b"", "")

    # -- answers

    def _generate(self, request: dict[str, Any]) -> None:
        missing = f"model '{request.get('model', '')}' not found"
        model = self._model(request, nothing=(404, missing))
        answer = self.server.answers.generate(model, request)
        if isinstance(answer, dict):
            self.answer(answer)
        elif request.get("stream") is False:
            whole: dict[str, Any] = {}
            said = ""
            for whole in answer:
                said += whole["response"]
            self.answer(whole | {"response": said})
        else:
            self.stream(answer)

    def _chat(self, request: dict[str, Any]) -> None:
        model = self._model(request, nothing=(400, "model is required"))
        answer = self.server.answers.chat(model, request)
        if isinstance(answer, dict):
            self.answer(answer)
        elif request.get("stream") is False:
            self.answer(_whole(answer))
        else:
            self.stream(answer)

    def _model(self, request: dict[str, Any], nothing: tuple[int, str]) -> Model:
        try:
            if request.get("keep_alive") is not None:
                parsed_duration(request["keep_alive"])
        except ValueError as error:
            raise Refused(400, str(error)) from error
        try:
            return read_model(self.server.store, self._referred(request.get("model") or "", nothing))
        except FileTrouble as error:
            if error.is_missing:
                raise Refused(404, f"model '{request['model']}' not found") from error
            raise

    def _referred(self, asked: str, nothing: tuple[int, str]) -> Name:
        try:
            return self.server.store.existing_name(referred_name(asked))
        except NoName:
            raise Refused(*nothing) from None
        except InvalidName:
            raise Refused(400, "invalid model name") from None
        except OfTheCloud:
            raise Refused(403, "ollama cloud is disabled: remote model details are unavailable") from None

    def _loaded(self, runner: Any) -> dict[str, Any]:
        name = runner.model.name.shortest
        until = runner.expires if runner.expires < 1e11 else time.time() + 1e9
        return {
            "name": name,
            "model": name,
            "size": runner.model.path.stat().st_size if runner.model.path.exists() else 0,
            "digest": runner.model.manifest.digest,
            "details": {"parent_model": ""} | runner.model.details,
            "expires_at": moment(int(until * 1e9)),
            "size_vram": 0,
            "context_length": runner.options["num_ctx"],
        }


def _whole(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Put the pieces of a chat together; the rest is the last one's."""
    whole: dict[str, Any] = {}
    said, thought = "", ""
    for whole in lines:
        said += whole["message"]["content"]
        thought += whole["message"].get("thinking", "")
    message = (whole.get("message") or {}) | {"content": said}
    return whole | {"message": message | ({"thinking": thought} if thought else {})}


def main() -> None:
    """Serve until SIGTERM or SIGINT, and let the llama-servers go then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434, help="0 for any; the log says which")
    parser.add_argument("--models", type=Path, required=True, help="folder of the store, as OLLAMA_MODELS")
    parser.add_argument("--llama-quantize", type=Path, required=True, help="llama.cpp's program")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's program; without it no model answers")
    parser.add_argument("--disk", type=int, help="bytes that the blobs may take, to play a disk that gets full")
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="time=%(asctime)s level=%(levelname)s %(message)s"
    )
    store = Store(arguments.models, arguments.disk)
    if not os.environ.get("OLLAMA_NOPRUNE"):
        store.prune()
    runners = Runners(arguments.llama_server)
    server = Ollama((arguments.host, arguments.port), store, arguments.llama_quantize, runners)

    def stop(*_: Any) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("Listening on %s:%d (version %s)", arguments.host, server.server_port, VERSION)
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        runners.stop_all()


if __name__ == "__main__":
    main()
