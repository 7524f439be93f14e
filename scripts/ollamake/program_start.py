"""Whether a program that was found really starts here: not built for another processor, and with all its libraries."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from ollamake.errors import OllamakeError

SECONDS = 20.0
_NO_PROGRAM = 126
"""Exit codes from here on are the loader's and the shell's: no program, or a library that is missing."""

_SAID = ("version", "usage")
"""One of them is in the answer of every program to either option."""


def require_starting(program: str, path: Path, seconds: float = SECONDS) -> None:
    """Raise OllamakeError unless ``path`` runs with --version or --help, ends by itself and says what a program says.

    How it ends does not matter: llama-quantize ends with 1 after telling its usage.
    """
    for option in ("--version", "--help"):
        fault = _fault(path, option, seconds)
        if fault is None:
            return
    raise OllamakeError(
        f"{program} was found at {path}, but {fault}. Install it anew for this machine, take it off PATH, or set"
        " tools.llama_cpp to a folder with programs that run here; without one llama.cpp's programs are built."
    )


def _fault(path: Path, option: str, seconds: float) -> str | None:
    try:
        done = subprocess.run(
            [str(path.absolute()), option],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"`{path.name} {option}` did not end within {seconds:g} s"
    except OSError as error:
        return f"it cannot be executed ({error.strerror})"
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    said = f": {lines[-1][:300]}" if lines else ""
    if done.returncode < 0:
        try:
            how = signal.Signals(-done.returncode).name
        except ValueError:
            how = f"signal {-done.returncode}"
        return f"`{path.name} {option}` crashes ({how}{said})"
    if done.returncode >= _NO_PROGRAM:
        return f"`{path.name} {option}` does not start (exit code {done.returncode}{said})"
    answer = done.stdout + done.stderr
    if not any(word in answer.lower() for word in _SAID):
        return (
            f"`{path.name} {option}` answers nothing that llama.cpp's programs do (exit code {done.returncode}{said})"
        )
    return None
