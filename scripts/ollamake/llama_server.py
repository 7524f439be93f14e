"""llama.cpp's server on a GGUF, to see how it renders the chat template in it: what Ollama 0.30 and later runs underneath."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ollamake.errors import OllamakeError
from ollamake.heartbeat import waiting

_SECONDS_TO_LOAD = 1800.0


@dataclass(frozen=True)
class LlamaServer:
    """A running server; see tools/server/README.md in llama.cpp."""

    address: str

    def rendered(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        """Return the prompt for a conversation. Raises OllamakeError where the template refuses it."""
        body = {"messages": messages} | ({"tools": tools} if tools else {})
        return str(self._post("/apply-template", body)["prompt"])

    def token_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, with the BOS that is put before it."""
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return [int(number) for number in self._post("/tokenize", body)["tokens"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = httpx.post(f"{self.address}{path}", json=body, timeout=60.0, trust_env=False)
            content: dict[str, Any] = answer.json()
        except (httpx.TransportError, ValueError) as error:
            raise OllamakeError(f"llama-server does not answer {path}: {error}") from error
        if answer.status_code != 200:
            raise OllamakeError(f"llama-server refuses {path}: {content.get('error')}")
        return content


@contextmanager
def llama_server(program: Path, gguf: Path) -> Iterator[LlamaServer]:
    """Run llama-server on a GGUF at a free port of this machine for as long as the block lasts.

    Raises OllamakeError with what it said if it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-c", "4096"]
    command += ["--jinja", "--no-warmup"]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as child,
    ):
        try:
            with waiting(f"llama-server loads {gguf.name}"):
                _wait_until_ready(f"http://127.0.0.1:{port}", child, output)
            yield LlamaServer(f"http://127.0.0.1:{port}")
        finally:
            child.terminate()


def _wait_until_ready(address: str, child: subprocess.Popen[bytes], output: Any) -> None:
    deadline = time.monotonic() + _SECONDS_TO_LOAD
    while True:
        try:
            if httpx.get(f"{address}/health", timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError as error:
            reason = str(error)
        else:
            reason = "it is still loading"
        if child.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            said = output.read().decode("utf-8", errors="replace").splitlines()[-10:]
            raise OllamakeError(f"llama-server did not start ({reason}). It said:\n  " + "\n  ".join(said))
        time.sleep(0.1)
