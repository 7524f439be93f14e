"""Programs that tests need and that take minutes to compile: each is built once, whoever needs it first.

Where tests run in several processes (pytest-xdist), one more compiles in the background from the beginning on, what is
needed first first. A test that comes to a program too early waits for it, and builds it itself if nobody else does.

    python tests/background_builds.py llama.cpp
    python tests/background_builds.py ollama
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout
from ollama_program import BUILT, found_ollama, install_ollama
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake

OF_A_BUILD = (
    "llama-quantize",
    "llama-tokenize",
    "llama-fit-params",
    "llama-imatrix",
    "llama-perplexity",
    "llama-bench",
)
"""Programs of llama.cpp that a build takes which is measured."""
PROGRAMS = (*OF_A_BUILD, "llama-server")
"""Those that tests take, in the order in which they come to them."""

_running: list[subprocess.Popen[bytes]] = []


def llama_cpp_program(name: str) -> Path:
    """Return a program of llama.cpp, built by the workflow's own rule where it is not yet."""
    path = LLAMA_CPP / "bin" / name
    # The record is written last.
    build_once((LLAMA_CPP / f"bin/{name}.json").exists, lambda: by_workflow(path), LLAMA_CPP)
    return path


def ollama() -> Path:
    """Return the real Ollama, built with Go where there is none. AssertionError says what Go has against it."""
    found = found_ollama()
    if found is None:
        vendor = LLAMA_CPP / "source/vendor"
        build_once(vendor.is_dir, lambda: by_workflow(LLAMA_CPP / "source.json"), LLAMA_CPP)
        build_once(BUILT.exists, install_ollama, BUILT.parent)
    return (found or BUILT).resolve()


def by_workflow(*files: Path) -> None:
    """Make files of the repository by the workflow, as a user would. AssertionError has what Snakemake printed."""
    done = run_snakemake("--cores", "all", *(file.relative_to(REPOSITORY) for file in files), folder=REPOSITORY)
    assert done.returncode == 0, done.stdout


def build_once(is_there: Callable[[], bool], build: Callable[[], None], folder: Path) -> None:
    """Build if it is not there; while somebody else builds in the folder, wait until it is, or until it is one's turn."""
    while not is_there():
        try:
            with turn_at(folder).acquire(timeout=1):
                if not is_there():
                    build()
        except Timeout:
            continue


def turn_at(folder: Path) -> FileLock:
    """Return the lock for making ``folder`` of the repository: two Snakemakes would refuse to make the same files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f"{folder.name}.tests.lock"))


def begin(nodeids: Iterable[str]) -> None:
    """Begin to compile in the background what tests with these names need."""
    folders = {nodeid.split("/")[1] for nodeid in nodeids if nodeid.startswith("tests/")}
    if _running or not folders & {"dag", "faults", "e2e"}:
        return
    for what in ("llama.cpp", *(["ollama"] if "e2e" in folders else [])):
        command = ["nice", sys.executable, __file__, what]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
        # Failures are said by the test that needs the program: it tries again.
        silent = subprocess.DEVNULL
        _running.append(
            subprocess.Popen(command, env=environment, stdout=silent, stderr=silent, start_new_session=True)
        )


def end() -> None:
    """Stop what is not over."""
    for build in _running:
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGTERM)
            build.wait()
    _running.clear()


def main() -> None:
    stopped = threading.Event()
    # All of the process group is told to stop. This process ends last, when what it has started has tidied up.
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    if sys.argv[1] == "ollama":
        ollama()
        return
    for name in PROGRAMS:
        llama_cpp_program(name)
        # Between two programs whoever waits has the next turn.
        if stopped.wait(0.1):
            return


if __name__ == "__main__":
    main()
