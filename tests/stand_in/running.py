"""The stand-in for Ollama 0.33 as a process of its own, for as long as a test needs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

PROGRAM = Path(__file__).with_name("ollama_0_33.py")
_SECONDS_TO_START = 30.0


@dataclass(frozen=True)
class StandIn:
    """A running stand-in."""

    address: str
    process: subprocess.Popen[bytes]
    """Leads a process group that its llama-servers are in; a test may kill it."""
    models: Path


@contextmanager
def standing_in(
    models: Path, log: Path, quantize: Path, server: Path | None = None, *, port: int = 0, disk: int | None = None
) -> Iterator[StandIn]:
    """Start the stand-in on the store ``models`` and yield it when it is ready; end it and its llama-servers afterwards.

    ``port`` 0 is any free one; ``disk`` bounds the bytes of the blobs, to play a disk that gets full. Its output is in
    ``log``.
    """
    command = [sys.executable, str(PROGRAM), "--port", str(port), "--models", str(models)]
    command += ["--llama-quantize", str(quantize), *(["--llama-server", str(server)] if server else [])]
    command += ["--disk", str(disk)] if disk is not None else []
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True) as child,
    ):
        try:
            yield StandIn(_address_when_ready(child, log), child, models)
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
            # What it left: a llama-server outlives a server that was killed.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def _address_when_ready(child: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and child.poll() is None:
        if said := re.search(rb"Listening on (127\.0\.0\.1:\d+)", log.read_bytes()):
            address = f"http://{said[1].decode()}"
            with suppress(httpx.TransportError):
                if httpx.get(f"{address}/api/version", trust_env=False).json() == {"version": "0.33.0"}:
                    return address
        time.sleep(0.05)
    raise RuntimeError(f"the stand-in did not start:\n{log.read_text(errors='replace')}")
