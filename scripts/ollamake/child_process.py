"""A program of llama.cpp that runs beside this process: heard while it runs, and ended with it whatever happens."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ollamake.termination import undivided

SECONDS_TO_END = 10.0

Hear = Callable[[str], None]
"""What is called with each piece of what a program says, by a thread of its own."""


class ChildProcess:
    """A running program. ``stopped``: it was ended from here. Its output is read by threads, so that no pipe fills up."""

    def __init__(
        self, command: Sequence[str | Path], hear_output: Hear, hear_log: Hear, environment: dict[str, str]
    ) -> None:
        self.stopped = False
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        streams = ((self._process.stdout, hear_output), (self._process.stderr, hear_log))
        self._threads = [threading.Thread(target=_read, args=arguments, daemon=True) for arguments in streams]
        for thread in self._threads:
            thread.start()

    def returncode(self) -> int | None:
        """Return the exit code, a negative number of a signal, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Wait for its end, but not longer than that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def end(self) -> int:
        """End the program if it has not ended, and return its exit code when all that it said is heard."""
        if self.returncode() is None:
            self.stopped = True
            self._signal(signal.SIGTERM)
            self.wait(SECONDS_TO_END)
            if self.returncode() is None:
                self._signal(signal.SIGKILL)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end of the program and of what it says, and return its exit code."""
        returncode = self._process.wait()
        for thread in self._threads:
            thread.join(SECONDS_TO_END)
        if any(thread.is_alive() for thread in self._threads):
            # What was started is a script, and the program that it runs is still there.
            self._signal(signal.SIGKILL)
            for thread in self._threads:
                thread.join()
        return returncode

    def _signal(self, number: int) -> None:
        """Send a signal to the program and to what it has started, which are one session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextmanager
def running(
    command: Sequence[str | Path], hear_output: Hear, hear_log: Hear, **settings: str
) -> Iterator[ChildProcess]:
    """Start a program, and end it with the block. ``settings``: of its environment, where the user has none."""
    child: ChildProcess | None = None
    try:
        with undivided():
            child = ChildProcess(command, hear_output, hear_log, settings | _environment())
        yield child
    finally:
        if child is not None:
            with undivided():
                child.end()


@contextmanager
def heard(command: Sequence[str], **settings: Any) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Start a program of which each line is read here, errors included, and end it where that is left by an exception.

    By itself subprocess waits for it then, or leaves it running. ``settings``: as of subprocess.Popen.
    """
    said: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with undivided():
        child = subprocess.Popen(command, **said, **settings)
    with child:
        try:
            assert child.stdout is not None
            yield child, child.stdout
        except BaseException:
            # What it has started itself, as ninja has compilers, is for it to end.
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(SECONDS_TO_END)
            child.kill()
            raise


def _read(stream: IO[bytes], hear: Hear) -> None:
    """Hand on what comes, as soon as it comes: not all of it ends with a line."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with stream:
        while data := os.read(stream.fileno(), 65536):
            hear(decoder.decode(data))
        hear(decoder.decode(b"", final=True))


def _environment() -> dict[str, str]:
    """Return the environment without what would change how llama.cpp's programs say things."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG_LOG", "LLAMA_LOG"))}
