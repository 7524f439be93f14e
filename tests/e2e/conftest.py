"""The trained demo; a real Ollama, on PATH or in OLLAMA_BIN or else built from its Go module; servers that a test may kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import background_builds
import pytest
from faulty_proxy import FaultyProxy, faulty_proxy
from ollama_program import OLLAMA_VERSION
from registering import Kind, Server, Weights, real_ollama_at, small_weights, standing_in_at
from snakemake_runs import REPOSITORY

from ollamake import ollama_server as ollama_server_module
from ollamake.store_server import serving


@pytest.fixture(scope="module")
def work(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the demo's base and adapter in `trained`, as the workflow trains them in the repository."""
    for program in ("llama-quantize", "llama-tokenize", "llama-fit-params"):
        llama_cpp(program)
    demo = REPOSITORY / "resources/demo"
    with background_builds.turn_at(demo):
        background_builds.by_workflow(demo / "base/config.json", demo / "adapter/adapter_config.json")
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(demo, folder / "trained")
    return folder


@pytest.fixture(scope="session")
def ollama_on_path() -> Iterator[Path]:
    """Make `ollama` a command of this process and its children; return the program."""
    program = background_builds.ollama()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        yield program


@pytest.fixture(scope="session")
def ollama_home(ollama_on_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder for the servers of the tests, so that they leave nothing in the user's."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("OLLAMA_NO_CLOUD", "1")
        patch.delenv("OLLAMA_HOST", raising=False)
        patch.delenv("OLLAMA_MODELS", raising=False)
        yield home


@pytest.fixture(scope="session")
def server(ollama_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running, empty server."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder / "models", folder / "serve.log") as address:
        yield address


@pytest.fixture(scope="session", params=["the real 0.17.4", "a stand-in for 0.33"])
def registrar(
    request: pytest.FixtureRequest, ollama_on_path: Path, ollama_home: Path, llama_cpp: Callable[[str], Path]
) -> Kind:
    """An Ollama that the test may start, kill and start again on its models."""
    if request.param == "the real 0.17.4":
        return Kind(OLLAMA_VERSION, real_ollama_at(ollama_on_path))
    return Kind("0.33.0", standing_in_at(llama_cpp("llama-quantize"), llama_cpp("llama-server")))


@pytest.fixture(scope="session")
def weights(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Quantization -> small weights of that type, with a chat template that no Ollama knows."""
    return small_weights(llama_cpp("llama-quantize"), tmp_path_factory.mktemp("weights"))


@pytest.fixture
def ollama_server(registrar: Kind, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, without models."""
    with registrar.serving(tmp_path / "server") as server:
        yield server


@pytest.fixture
def proxy(ollama_server: Server) -> Iterator[FaultyProxy]:
    """A proxy in front of that server; what goes through it is counted, and may be disturbed."""
    with faulty_proxy(ollama_server.address) as proxy:
        yield proxy


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon, and give up soon what is slow by nature."""
    monkeypatch.setattr(ollama_server_module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(ollama_server_module, "_FIRST_TOKEN_PATIENCES", 1)
