"""The `ollama` on PATH, asked without any server."""

from __future__ import annotations

import os
import shutil
import subprocess


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
