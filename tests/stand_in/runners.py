"""llama-server processes and when they are started and let go (llm/llama_server.go, server/sched.go).

A process is known by the blob of its weights alone, as in Ollama: two names on one blob share it, whichever of them was
asked first, with the way of prompting of that one. There are no GPUs here; two threads do for every model.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from go_text import parsed_duration
from loaded_model import Model

log = logging.getLogger("ollama-0.33")

_THREADS = 2
_MOST = 3
"""Models held at once on a machine without a GPU."""

_LOAD_SECONDS = 120.0
_ERROR = re.compile(r"(error:|Error:|error loading model|GGML_ASSERT|llama_init_from_model:).*")
_OF_PROCESS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu")


class RunnerFailed(Exception):
    """llama-server does not run or refuses; the text is what Ollama passes on."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


class Runner:
    """One llama-server."""

    def __init__(self, program: Path, model: Model, options: dict[str, Any], *, automatic_context: bool) -> None:
        self.model = model
        self.options = options
        self.automatic_context = automatic_context
        self.generating = threading.Lock()
        self.users = 0
        self.session = 0.0
        self.expires = 0.0
        self.timer: threading.Timer | None = None
        self._errors: deque[str] = deque(maxlen=20)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [str(program), "--model", str(model.path), "--port", str(self.port), "--host", "127.0.0.1"]
        command += [argument for path in model.adapters for argument in ("--lora", str(path))]
        command += ["--no-webui", "--offline", "-c", str(options["num_ctx"]), "-np", "1"]
        if model.is_rendered_in_go:
            # The name is a placeholder: prompts come rendered.
            command += ["--no-jinja", "--chat-template", "chatml"]
        batch = str(options.get("num_batch", 512))
        command += ["-b", batch, "-ub", batch, "-t", str(options.get("num_thread") or _THREADS), "--context-shift"]
        command += ["--keep", str(options["num_keep"])] if options["num_keep"] > 0 else []
        log.info("starting llama-server cmd=%s", command)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded. Raises RunnerFailed."""
        deadline = time.monotonic() + _LOAD_SECONDS
        while time.monotonic() < deadline:
            if not self.is_up:
                self._reader.join()
                code = self.process.returncode
                text = f"exit status {code}" if code >= 0 else f"signal: {-code}"
                said = ": " + "\n".join(self._errors) if self._errors else ""
                raise RunnerFailed(f"llama-server process has terminated: {text}{said}")
            try:
                if self._get("/health") == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise RunnerFailed("timed out waiting for llama-server to start - " + "\n".join(self._errors))

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Post and return the JSON answer. Raises RunnerFailed with llama-server's own words if it refuses."""
        connection, answer = self._post(path, body)
        with connection_closed(connection):
            return json.loads(answer.read())

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post and yield the events of the answer. Raises RunnerFailed."""
        connection, answer = self._post(path, body)
        with connection_closed(connection):
            for line in answer:
                event = line.strip().removeprefix(b"data: ")
                if event and not event.startswith(b":") and event != b"[DONE]":
                    yield json.loads(event)

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, special ones too, without a leading BOS."""
        return [int(token) for token in self.ask("/tokenize", {"content": text})["tokens"]]

    def stop(self) -> None:
        """End the process."""
        if self.timer is not None:
            self.timer.cancel()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with connection_closed(connection):
            connection.request("GET", path)
            return connection.getresponse().status

    def _post(self, path: str, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RunnerFailed(
                "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error,"
                " check ollama server logs for details"
            ) from error
        if answer.status >= 400:
            with connection_closed(connection):
                raise RunnerFailed(answer.read().decode("utf-8", "replace").strip(), answer.status)
        return connection, answer

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            print(text, file=sys.stderr, flush=True)
            if error := _ERROR.search(text):
                self._errors.append(error[0])


class Runners:
    """All of a server's llama-servers."""

    def __init__(self, program: Path | None) -> None:
        self._program = program
        self._loaded: dict[Path, Runner] = {}
        self._lock = threading.RLock()

    @contextmanager
    def running(
        self, model: Model, options: dict[str, Any], keep_alive: Any, *, automatic_context: bool
    ) -> Iterator[Runner]:
        """Hold a model loaded, starting llama-server if none fits. Raises RunnerFailed."""
        with self._lock:
            runner = self._runner(model, options, automatic_context=automatic_context)
            runner.users += 1
            if runner.timer is not None:
                runner.timer.cancel()
            if keep_alive is not None:
                runner.session = parsed_duration(keep_alive)
            runner.expires = time.time() + runner.session
        try:
            yield runner
        finally:
            with self._lock:
                runner.users -= 1
                if not runner.users:
                    self._idle(runner)

    def expire(self, model: Model) -> None:
        """Let a model go, at once if nobody uses it."""
        with self._lock:
            runner = self._loaded.get(model.path or Path())
            if runner is not None:
                runner.session = 0.0
                if not runner.users:
                    self._unload(runner)

    def loaded(self) -> list[Runner]:
        """Return what is loaded, the longest to stay first."""
        with self._lock:
            return sorted(self._loaded.values(), key=lambda runner: -runner.expires)

    def stop_all(self) -> None:
        """End all processes."""
        with self._lock:
            for runner in list(self._loaded.values()):
                self._unload(runner)

    def _runner(self, model: Model, options: dict[str, Any], *, automatic_context: bool) -> Runner:
        assert model.path is not None
        trained = model.gguf.of_architecture("context_length") if model.gguf else None
        options = options | {"num_ctx": max(4, min(options["num_ctx"], trained or options["num_ctx"]))}
        runner = self._loaded.get(model.path)
        if runner is not None:
            wanted = {name: options.get(name) for name in _OF_PROCESS}
            if automatic_context and runner.automatic_context:
                wanted["num_ctx"] = runner.options["num_ctx"]
            same = runner.model.adapters == model.adapters
            if runner.is_up and same and wanted == {name: runner.options.get(name) for name in _OF_PROCESS}:
                return runner
            # Ollama waits for those who use it; here nobody is waited for.
            self._unload(runner)
        idle = [other for other in self._loaded.values() if not other.users]
        if len(self._loaded) >= _MOST and idle:
            self._unload(min(idle, key=lambda other: other.expires))
        if self._program is None or not self._program.exists():
            raise RunnerFailed(f"llama-server binary not found (checked: {self._program})")
        runner = Runner(self._program, model, options, automatic_context=automatic_context)
        kept = os.environ.get("OLLAMA_KEEP_ALIVE") or "5m"
        runner.session = parsed_duration(float(kept) if re.fullmatch(r"-?\d+", kept) else kept)
        try:
            runner.wait_until_ready()
        except RunnerFailed:
            runner.stop()
            raise
        self._loaded[model.path] = runner
        return runner

    def _idle(self, runner: Runner) -> None:
        if runner.session <= 0:
            self._unload(runner)
            return
        runner.expires = time.time() + runner.session
        if not math.isinf(runner.session):
            runner.timer = threading.Timer(runner.session, self._expire_idle, [runner])
            runner.timer.daemon = True
            runner.timer.start()

    def _expire_idle(self, runner: Runner) -> None:
        with self._lock:
            if not runner.users and runner.expires <= time.time():
                self._unload(runner)

    def _unload(self, runner: Runner) -> None:
        path = runner.model.path or Path()
        if self._loaded.get(path) is runner:
            del self._loaded[path]
        runner.stop()


@contextmanager
def connection_closed(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Close a connection afterwards, which also tells llama-server to stop answering."""
    try:
        yield
    finally:
        connection.close()
