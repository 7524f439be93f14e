"""The real Ollama of the tests: on PATH or in OLLAMA_BIN, else built from its Go module, beside the workflow's own tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from snakemake_runs import LLAMA_CPP, REPOSITORY

OLLAMA_VERSION = "0.17.4"
OLLAMA_SUM = "h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s="
"""Of the module's files, its go.sum among them, which has the sums of all that it needs."""
BUILT = REPOSITORY / "resources/ollama" / OLLAMA_VERSION / "ollama"


def found_ollama() -> Path | None:
    """Return the program that was there before."""
    found = os.environ.get("OLLAMA_BIN") or shutil.which("ollama")
    return Path(found) if found else None


def install_ollama() -> None:
    """Make BUILT with Go, which needs minutes for it.

    The module lacks the headers that llama.cpp keeps in a folder called vendor, which Go drops from modules; the source
    that the workflow fetches, and that must be there, has them. It is built in the module's own folder, by its go.sum; its
    licence is put beside it.
    """
    module = _fetched_module()
    flags = f"-ldflags=-X=github.com/ollama/ollama/version.Version={OLLAMA_VERSION}"
    headers = {"CGO_CPPFLAGS": f"-I{LLAMA_CPP / 'source/vendor'}", "CGO_ENABLED": "1"}
    BUILT.parent.mkdir(parents=True, exist_ok=True)
    # Elsewhere first: who finds BUILT finds all of it.
    with tempfile.TemporaryDirectory(dir=BUILT.parent, prefix=".building-") as folder:
        command = ["go", "build", "-mod=readonly", flags, "-o", f"{folder}/ollama", "."]
        environment = {**os.environ, **headers}
        done = subprocess.run(command, cwd=module, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (
            f"Ollama could not be built; put one on PATH or set OLLAMA_BIN.\n{done.stderr[-3000:]}"
        )
        shutil.copyfile(module / "LICENSE", BUILT.parent / "LICENSE")
        Path(folder, "ollama").replace(BUILT)


def _fetched_module() -> Path:
    """Return the folder of the module, once its sum is the pinned one."""
    command = ["go", "mod", "download", "-json", f"github.com/ollama/ollama@v{OLLAMA_VERSION}"]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"Ollama's source could not be fetched.\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    assert found["Sum"] == OLLAMA_SUM, f"Ollama {OLLAMA_VERSION} is not the module that was pinned: {found['Sum']}"
    return Path(found["Dir"])
