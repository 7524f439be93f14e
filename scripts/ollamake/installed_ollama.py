"""Which Ollama there is: the `ollama` on PATH, asked without any server, and which versions can be used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from ollamake.errors import OllamakeError

_CREATES_FROM_FILES = (0, 5, 5)
"""The first release whose /api/create takes JSON with `files` (docs/api.md); before, it took a Modelfile."""


def installed_version() -> str | None:
    """Return the version of the `ollama` on PATH, whose form a store is written in, or None without one."""
    program = shutil.which("ollama")
    if program is None:
        return None
    # It also asks a running server for its version; an address where nothing is keeps it from that.
    environment = {**os.environ, "OLLAMA_HOST": "127.0.0.1:1"}
    done = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, check=False)
    words = [word for line in done.stdout.splitlines() if "version" in line for word in line.split()]
    return words[-1] if words else None


def version_said(value: object) -> str:
    """Return what a server gives as its version. Raises ValueError for what none of Ollama's would be."""
    if not isinstance(value, str):
        raise ValueError(f"its version is {value!r}, as no Ollama's")
    return value


def require_create_of_files(version: str, address: str) -> None:
    """Raise OllamakeError if the server of this version cannot be told of a model as it is told here.

    What is built from source without a version says 0.0.0, and is believed to be new enough.
    """
    numbers = tuple(map(int, re.findall(r"\d{1,9}", version)[:3]))
    if any(numbers) and numbers < _CREATES_FROM_FILES:
        raise OllamakeError(
            f"the Ollama at {address} is {version}; expected {'.'.join(map(str, _CREATES_FROM_FILES))} or later, which can be"
            " given the files of a model. Update it, or set ollama.target to store."
        )
