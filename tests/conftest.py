"""What all tests share: llama.cpp's programs as the workflow itself builds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import background_builds
import pytest
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to compile what the tests with a real Ollama need, while those before them leave a core idle."""
    if not session.config.option.collectonly and any("ollama_on_path" in item.fixturenames for item in session.items):
        background_builds.begin()


def pytest_sessionfinish() -> None:
    """Leave no compiler behind."""
    background_builds.end()


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[[str], Path]:
    """Return a function that gives a program of llama.cpp, built by the workflow's own rule where it is not yet."""

    def program(name: str) -> Path:
        path = LLAMA_CPP / "bin" / name
        if not path.exists():
            background_builds.wait("llama-server")
        if not path.exists():
            done = run_snakemake("--cores", "all", path.relative_to(REPOSITORY), folder=REPOSITORY)
            assert path.exists(), done.stdout
        return path

    return program
