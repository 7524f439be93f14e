"""The real Ollama of the tests: on PATH or in OLLAMA_BIN, else built from its Go module, beside the workflow's own tools."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from snakemake_runs import LLAMA_CPP, REPOSITORY

OLLAMA_VERSION = "0.17.4"
BUILT = REPOSITORY / "resources/ollama" / OLLAMA_VERSION / "ollama"


def found_ollama() -> Path | None:
    """Return the program that was there before."""
    found = os.environ.get("OLLAMA_BIN") or shutil.which("ollama")
    return Path(found) if found else None


def go_install() -> tuple[list[str], dict[str, str]]:
    """Return the command that makes BUILT, and its environment. Go needs minutes for it.

    The module lacks the headers that llama.cpp keeps in a folder called vendor, which Go drops from modules; the source
    that the workflow fetches has them.
    """
    flags = f"-ldflags=-X=github.com/ollama/ollama/version.Version={OLLAMA_VERSION}"
    headers = LLAMA_CPP / "source/vendor"
    environment = {**os.environ, "GOBIN": str(BUILT.parent), "CGO_CPPFLAGS": f"-I{headers}", "CGO_ENABLED": "1"}
    return ["go", "install", flags, f"github.com/ollama/ollama@v{OLLAMA_VERSION}"], environment
