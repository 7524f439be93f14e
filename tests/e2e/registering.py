"""What the tests of registration share: servers that may be killed, small weights, requests, and a look at the disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import ollama
from dag_build import save_small_base
from free_port import free_port
from gguf import GGUFReader
from snakemake_runs import LLAMA_CPP, REPOSITORY
from stand_in.running import standing_in

from ollamake.atomic_write import write_json
from ollamake.create_request import CreateRequest, request_of_marker
from ollamake.file_digest import sha256_of
from ollamake.gguf_conversion import convert
from ollamake.gguf_quantization import quantize
from ollamake.gguf_record import gguf_record
from ollamake.registration import Place, marker_differences, register

Starting = Callable[[Path, Path, int], AbstractContextManager[subprocess.Popen[bytes]]]
"""(models, log, port) -> a running server, the leader of its process group, that is ended afterwards."""

QUANTIZATIONS = ("Q4_K_M", "Q8_0", "F16", "F32", "IQ4_NL")

ONE_THREAD = {"num_thread": 1}
"""For what computes: Ollama's threads wait for each other busily, and with other tests on the same cores that takes minutes."""

REQUESTS = {
    "loaded": ("GET", "/api/ps"),
    "look": ("HEAD", "/api/blobs"),
    "upload": ("POST", "/api/blobs"),
    "create": ("POST", "/api/create"),
    "tags": ("GET", "/api/tags"),
    "show": ("POST", "/api/show"),
}
"""The requests of a registration."""

TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    "{{- /* .Tools .ToolCalls <think> & */ -}}"
)
"""Has the tools' variables, without which Ollama 0.30 and later may prefer the GGUF's own."""


@dataclass(frozen=True)
class Kind:
    """A version of Ollama that the tests can start."""

    version: str
    starting: Starting

    @contextmanager
    def serving(self, folder: Path) -> Iterator[Server]:
        """Start a server on folder/models and end it afterwards, whether or not the test has killed it."""
        folder.mkdir(parents=True, exist_ok=True)
        server = Server(self, folder / "models", folder / "serve.log", free_port())
        server.start()
        try:
            yield server
        finally:
            server.end()


@dataclass
class Server:
    """A server on a folder of models, always at the same address."""

    kind: Kind
    models: Path
    log: Path
    port: int
    _stack: ExitStack = field(default_factory=ExitStack)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> ollama.Client:
        """A client of somebody else's, as far as ollamake is concerned."""
        return ollama.Client(self.address)

    def start(self) -> None:
        self._process = self._stack.enter_context(self.kind.starting(self.models, self.log, self.port))

    def kill(self) -> None:
        """Kill it and all of its processes, at once and without a word."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        self._stack.close()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.end()
        self.start()

    def shown(self, name: str) -> dict[str, Any]:
        """Return all of /api/show."""
        return self.post("/api/show", {"model": name})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.client._request_raw("POST", path, json=body).json()
        return answer

    def create(self, body: dict[str, Any]) -> None:
        assert self.post("/api/create", body) == {"status": "success"}

    def loaded(self) -> set[tuple[str, str]]:
        """Return (name, digest of the manifest) of what is in memory."""
        return {
            (model["name"], model["digest"]) for model in self.client._request_raw("GET", "/api/ps").json()["models"]
        }

    def broken_blobs(self) -> list[str]:
        """Return every blob that a manifest names and that is not there whole, and every one that is not what it is called."""
        found = []
        for path in self.models.glob("manifests/*/*/*/*"):
            manifest = json.loads(path.read_bytes())
            for layer in [*manifest["layers"], manifest["config"]]:
                blob = self.models / "blobs" / layer["digest"].replace(":", "-")
                if not blob.is_file() or blob.stat().st_size != layer["size"]:
                    found.append(f"{path.parent.name}:{path.name} {layer['mediaType']} {layer['digest']}")
        for blob in self.models.glob("blobs/*"):
            digest = blob.name.removeprefix("sha256-")
            if len(digest) == 64 and sha256_of(blob) != digest:
                found.append(f"{blob.name} has other bytes than its name says")
        return found


def real_ollama_at(program: Path) -> Starting:
    """Return how a real Ollama is started."""

    @contextmanager
    def starting(models: Path, log: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
        environment = {**os.environ, "OLLAMA_MODELS": str(models), "OLLAMA_HOST": f"127.0.0.1:{port}"}
        command = [str(program), "serve"]
        with (
            log.open("ab") as output,
            subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True) as child,
        ):
            try:
                _wait_until_ready(child, log, port)
                yield child
            finally:
                child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(10)
                # Its runners outlive a server that was killed.
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    return starting


def standing_in_at(quantize: Path, server: Path) -> Starting:
    """Return how the stand-in for Ollama 0.33 is started, with these programs of llama.cpp."""

    @contextmanager
    def starting(models: Path, log: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
        with standing_in(models, log, quantize, server, port=port) as running:
            yield running.process

    return starting


def _wait_until_ready(child: subprocess.Popen[bytes], log: Path, port: int) -> None:
    deadline = time.monotonic() + 30
    with httpx.Client(verify=False, trust_env=False) as client:
        while time.monotonic() < deadline and child.poll() is None:
            with suppress(httpx.TransportError):
                if client.get(f"http://127.0.0.1:{port}/api/version").is_success:
                    return
            time.sleep(0.01)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')}")


@dataclass(frozen=True)
class Weights:
    """A GGUF and its record."""

    file: Path
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.record["sha256"])

    def others(self, folder: Path, number: int = 1) -> Weights:
        """Return weights of the same shape, some of them changed, that no server has yet."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.file.stem}-{number}.gguf"
        content = bytearray(self.file.read_bytes())
        tensor = max(GGUFReader(self.file).tensors, key=lambda tensor: tensor.n_bytes)
        # Behind the scale that blocks of the simple types begin with, so that no number becomes infinite.
        offset = int(tensor.data_offset) + 4
        content[offset : offset + 4] = (number * 2654435761 % 2**32 & 0x3F3F3F3F).to_bytes(4, "little")
        file.write_bytes(content)
        return Weights(file, self.record | {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()})


def small_weights(program: Path, folder: Path) -> dict[str, Weights]:
    """Convert and quantize a small model; its chat template is too far from all that Ollama recognises."""
    save_small_base(folder / "base")
    template = folder / "base/chat_template.jinja"
    template.write_text("{#- " + "of nobody else's " * 20 + "-#}" + template.read_text("utf-8"), "utf-8")
    source = folder / "source.gguf"
    convert(LLAMA_CPP / "source/convert_hf_to_gguf.py", folder / "base", "f32", "small", source)
    weights = {}
    for kind in QUANTIZATIONS:
        file = folder / f"small.{kind}.gguf"
        quantize(program, source, file, "COPY" if kind == "F32" else kind, 2)
        weights[kind] = Weights(file, gguf_record(file, file.name, kind))
    return weights


FULL = CreateRequest(
    name="full:q8_0",
    file="small.Q8_0.gguf",
    system="道路設計の専門家として回答します。",
    template=TEMPLATE,
    license=("MIT\n", "Apache-2.0 <&>"),
    parameters={"temperature": 0.1, "num_ctx": 2048, "stop": ["<|im_end|>", "<a>"], "use_mmap": True},
)
"""A request that asks for everything there is."""


def asking(weights: Weights, name: str, **changed: Any) -> CreateRequest:
    """Return FULL for other weights and another name, with some of it changed."""
    return replace(FULL, name=name, file=weights.file.name, **changed)


def registered(address: str, request: CreateRequest, weights: Weights, timeout: float = 30.0) -> dict[str, Any]:
    """Register on a server and return the marker."""
    return register(request, weights.file, weights.record, Place("server", address, "", timeout))


def differences(marker: dict[str, Any]) -> list[str]:
    """Return what a marker says that is not so, as scripts/verify.py finds it."""
    return marker_differences(marker, *request_of_marker(marker))


def script(
    server: str, weights: Weights, folder: Path, name: str = "ours", timeout: float = 30.0, **environment: str
) -> subprocess.Popen[str]:
    """Start scripts/register.py as the workflow does; it writes folder/registered.json."""
    write_json(folder / "request.json", asking(weights, name).as_json())
    write_json(folder / "record.json", weights.record)
    place = {"target": "server", "host": server, "store": ""}
    command = [sys.executable, str(REPOSITORY / "scripts/register.py"), "--request", str(folder / "request.json")]
    command += ["--gguf", str(weights.file), "--record", str(folder / "record.json"), "--spec", json.dumps(place)]
    command += ["--timeout", str(timeout), "--output", str(folder / "registered.json")]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **environment}
    )


def assert_whole(server: Server, marker: dict[str, Any]) -> None:
    """Look at the registered model from all sides."""
    assert differences(marker) == []
    assert marker["manifest_digest"] in {model.digest for model in server.client.list().models}
    assert server.broken_blobs() == []


def chats(server: Server, name: str) -> int:
    """Ask a model something and return how many tokens it has answered."""
    body = {"model": name, "messages": [{"role": "user", "content": "道路"}], "stream": False}
    options = {"num_predict": 2, "temperature": 0, "seed": 1, "num_ctx": 512, **ONE_THREAD}
    return int(server.post("/api/chat", body | {"options": options})["eval_count"])
