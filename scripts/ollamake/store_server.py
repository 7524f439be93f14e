"""The server that has a registered model: the one it was registered on, or one of our own on the store while it is needed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.ollama_server import PATIENCE, OllamaServer

_SECONDS_TO_START = 30.0


@contextmanager
def server_of(marker: Mapping[str, Any], patience: float = PATIENCE) -> Iterator[OllamaServer]:
    """Yield a server that has the model of a registration marker; ``patience``: seconds that it may be silent.

    Raises OllamakeError if its server does not answer, or if it is in a store and there is no `ollama` to serve it.
    """
    if marker["target"] == "server":
        server = OllamaServer(marker["host"], patience, marker["gguf"]["size"])
        server.version()
        yield server
        return
    with tempfile.TemporaryDirectory() as folder, serving(Path(marker["store"]), Path(folder) / "serve.log") as address:
        yield OllamaServer(address, patience, marker["gguf"]["size"])


@contextmanager
def serving(store: Path, log: Path) -> Iterator[str]:
    """Start `ollama serve` on ``store`` at a free port of this machine and yield its address; stop it afterwards.

    Raises OllamakeError if there is no ollama on PATH or it does not come up; its output is in ``log``.
    """
    program = shutil.which("ollama")
    if program is None:
        raise OllamakeError(
            "`ollama` is not on PATH. Install Ollama to chat here, or serve the store on a machine that has it:"
            f" OLLAMA_MODELS={store.resolve()} ollama serve"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "OLLAMA_MODELS": str(store.resolve()), "OLLAMA_HOST": address}
    with (
        log.open("wb") as output,
        subprocess.Popen([program, "serve"], env=environment, stdout=output, stderr=output) as child,
    ):
        try:
            _wait_until_ready(address, child, log)
            yield address
        finally:
            child.terminate()


def _wait_until_ready(address: str, child: subprocess.Popen[bytes], log: Path) -> None:
    server = OllamaServer(address)
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            server.version()
        except OllamakeError:
            if child.poll() is not None or time.monotonic() > deadline:
                said = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
                raise OllamakeError(f"`ollama serve` did not start. It said:\n  {said}") from None
            time.sleep(0.1)
        else:
            return
