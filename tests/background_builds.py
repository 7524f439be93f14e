"""Programs that the tests with a real Ollama need, compiled in the background while other tests run.

They take minutes, on cores that the tests before them leave idle. Whoever needs one waits for it, and builds it itself if it
is not there then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

from ollama_program import BUILT, found_ollama, go_install
from snakemake_runs import LLAMA_CPP, REPOSITORY


@dataclass
class _Build:
    """A compilation under way, and what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]


_builds: dict[str, _Build] = {}


def begin() -> None:
    """Begin what is not there yet: llama-server by the workflow's own rule, and Ollama by Go."""
    server = LLAMA_CPP / "bin/llama-server"
    if (LLAMA_CPP / "source.json").exists() and not server.exists():
        target = str(server.relative_to(REPOSITORY))
        _begin("llama-server", [sys.executable, "-m", "snakemake", "--cores", "all", target], dict(os.environ))
    if (LLAMA_CPP / "source.json").exists() and found_ollama() is None and not BUILT.exists():
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        _begin("ollama", *go_install())


def wait(name: str) -> None:
    """Wait until the build of ``name`` is over, if it was begun. What it said is shown if it failed."""
    build = _builds.pop(name, None)
    if build is not None and build.process.wait() != 0:
        build.said.seek(0)
        print(build.said.read().decode(errors="replace")[-3000:], file=sys.stderr)


def end() -> None:
    """Stop what is not over."""
    for build in _builds.values():
        if build.process.poll() is None:
            os.killpg(build.process.pid, signal.SIGTERM)
            build.process.wait()
    _builds.clear()


def _begin(name: str, command: list[str], environment: dict[str, str]) -> None:
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the build runs
    process = subprocess.Popen(
        ["nice", *command], cwd=REPOSITORY, env=environment, stdout=said, stderr=said, start_new_session=True
    )
    _builds[name] = _Build(process, said)
