"""The real Ollama of the tests: on PATH or in OLLAMA_BIN, else built from its Go module, beside the workflow's own tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from snakemake_runs import LLAMA_CPP, REPOSITORY

OLLAMA_VERSION = "0.17.4"
BUILT = REPOSITORY / "resources/ollama" / OLLAMA_VERSION / "ollama"


def found_ollama() -> Path | None:
    """Return the program that was there before."""
    found = os.environ.get("OLLAMA_BIN") or shutil.which("ollama")
    return Path(found) if found else None


def install_ollama() -> None:
    """Make BUILT with Go, which needs minutes for it.

    The module lacks the headers that llama.cpp keeps in a folder called vendor, which Go drops from modules; the source
    that the workflow fetches, and that must be there, has them.
    """
    flags = f"-ldflags=-X=github.com/ollama/ollama/version.Version={OLLAMA_VERSION}"
    command = ["go", "install", flags, f"github.com/ollama/ollama@v{OLLAMA_VERSION}"]
    headers = {"CGO_CPPFLAGS": f"-I{LLAMA_CPP / 'source/vendor'}", "CGO_ENABLED": "1"}
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    # Elsewhere first: who finds BUILT finds all of it.
    with tempfile.TemporaryDirectory(dir=BUILT.parent, prefix=".building-") as folder:
        environment = {**os.environ, "GOBIN": folder, **headers}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (
            f"Ollama could not be built; put one on PATH or set OLLAMA_BIN.\n{done.stderr[-3000:]}"
        )
        Path(folder, "ollama").replace(BUILT)
