"""Running llama-perplexity: its progress while it runs, its end whatever happens, and two of them joined by a pipe."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.child_process import SECONDS_TO_END, ChildProcess, running
from ollamake.perplexity_output import chunk_figures
from ollamake.progress import progress_bar
from ollamake.termination import interruptible

log = logging.getLogger("ollamake")

_SECONDS_BETWEEN_LOOKS = 0.05
_KEPT_CHARACTERS = 200_000
"""Of stderr: with the usual verbosity llama.cpp writes a few kB."""
_ERROR_LINE = re.compile(r"\d+\.\d+\.\d+\.\d+ E .*")
"""Time and level; a line that is not ended yet may stand in front of it."""
_LINES_SHOWN = 10


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    ``stopped``: it was ended from here. ``chunks``: the last chunk whose figures it printed; ``nonfinite_chunk``: the first
    whose figures were no finite numbers.
    """

    program: str
    returncode: int
    stopped: bool
    stdout: str
    stderr: str
    chunks: int
    nonfinite_chunk: int | None

    @property
    def lost_its_reader(self) -> bool:
        """Whether it died of writing into a pipe that nobody reads any more."""
        return self.returncode == -signal.SIGPIPE

    def how(self) -> str:
        """Return how it ended, in words."""
        if self.returncode >= 0:
            return f"exit code {self.returncode}"
        try:
            name = signal.Signals(-self.returncode).name
        except ValueError:
            name = f"signal {-self.returncode}"
        hint = "; if nobody did that, the system was short of memory" if self.returncode == -signal.SIGKILL else ""
        return f"ended by {name}{hint}"

    def errors(self) -> list[str]:
        """Return the lines that it marked as errors."""
        return [line.rstrip() for line in _ERROR_LINE.findall(self.stderr)]

    def last_words(self) -> str:
        """Return its last error lines, or its last lines if none is marked as one."""
        lines = [line.rstrip() for line in self.stderr.splitlines() if line.strip()]
        return "\n".join((self.errors() or lines)[-_LINES_SHOWN:]) or "(it said nothing)"


def until_all_is_said(run: Callable[[], Ended], complete: Callable[[Ended], bool]) -> Ended:
    """Run a program again, twice at most, whose last lines are missing though nothing else is wrong.

    A llama.cpp that ollamake did not build may lose them (see llama_cpp_patch).
    """
    for attempts_left in (2, 1, 0):
        ended = run()
        well = not ended.returncode and not ended.stopped and ended.nonfinite_chunk is None and not ended.errors()
        if complete(ended) or not well or not attempts_left:
            break
        log.warning("the last lines of %s are missing; it may have lost them, so it is run once more", ended.program)
    return ended


def run_alone(command: Sequence[str | Path], description: str, chunks: int) -> Ended:
    """Run llama-perplexity over about ``chunks`` chunks. It is ended at the first chunk whose figures are not finite."""
    with interruptible(), _running(command, description, chunks) as run:
        while run.child.returncode() is None and run.listener.nonfinite_chunk is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return run.end()


def run_joined(
    writer_command: Callable[[Path], Sequence[str | Path]],
    reader_command: Callable[[Path], Sequence[str | Path]],
    complete: Callable[[Ended], bool],
    description: str,
    chunks: int,
) -> tuple[Ended, Ended]:
    """Run two llama-perplexity that hand the log-probabilities through a named pipe; return (writer, reader).

    The commands are made for the pipe's path. kl_divergence() reads its file once from the first byte to the last, so it does
    not notice the difference. The two compute by turns, so their idle threads must not keep the cores busy (OMP_WAIT_POLICY: four
    times as fast on two cores). Whichever dies or stops early, the other is ended; ``complete`` says whether the reader has done
    its work.
    """
    with tempfile.TemporaryDirectory(prefix="ollamake-") as folder, interruptible():
        pipe = Path(folder) / "logits"
        os.mkfifo(pipe)
        with (
            _running(writer_command(pipe), None, chunks, OMP_WAIT_POLICY="passive") as writer,
            _running(reader_command(pipe), description, chunks, OMP_WAIT_POLICY="passive") as reader,
        ):
            while writer.listener.nonfinite_chunk is None and reader.listener.nonfinite_chunk is None:
                # The reader first: if it has ended because the writer died, the writer's death is seen, too.
                reader_code, writer_code = reader.child.returncode(), writer.child.returncode()
                if reader_code is not None:
                    if writer_code is None and complete(reader.ended()):
                        writer.child.wait(SECONDS_TO_END)
                    break
                if writer_code == -signal.SIGPIPE:
                    # The reader let go of the pipe, and says why while it ends.
                    reader.child.wait(SECONDS_TO_END)
                    break
                if writer_code:
                    break
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            return writer.end(), reader.end()


class _Listener:
    """Keeps what a llama-perplexity says, and shows its progress. Its two methods are called by two threads."""

    def __init__(self, progress: Any) -> None:
        self.stdout = ""
        self.stderr = ""
        self.chunks = 0
        self.nonfinite_chunk: int | None = None
        self._progress = progress
        self._rest = ""

    def hear_output(self, text: str) -> None:
        self.stdout += text
        *pieces, self._rest = re.split(r"[,\n]", self._rest + text)
        for figures in filter(None, map(chunk_figures, pieces)):
            if not figures.finite and self.nonfinite_chunk is None:
                self.nonfinite_chunk = figures.chunk
            if self._progress is not None:
                kld = "" if figures.kld is None else f", KLD {figures.kld:.3g}"
                self._progress.set_postfix_str(f"PPL {figures.ppl:.6g}{kld}", refresh=False)
                self._progress.update(figures.chunk - self.chunks)
            self.chunks = figures.chunk

    def hear_log(self, text: str) -> None:
        self.stderr = (self.stderr + text)[-_KEPT_CHARACTERS:]


@dataclass(frozen=True)
class _Run:
    """A running llama-perplexity and what it has said so far."""

    program: str
    child: ChildProcess
    listener: _Listener

    def end(self) -> Ended:
        """End it if it has not ended, and return what came of it."""
        return self._ended(self.child.end())

    def ended(self) -> Ended:
        """Return what came of it when it ends."""
        return self._ended(self.child.ended())

    def _ended(self, returncode: int) -> Ended:
        said = self.listener
        return Ended(
            self.program, returncode, self.child.stopped, said.stdout, said.stderr, said.chunks, said.nonfinite_chunk
        )


@contextmanager
def _running(command: Sequence[str | Path], description: str | None, chunks: int, **settings: str) -> Iterator[_Run]:
    """Start a program, and end it with the block; ``description`` is of its progress, None to show none."""
    with progress_bar(chunks, description, unit=" chunks") if description else nullcontext() as progress:
        listener = _Listener(progress)
        with running(command, listener.hear_output, listener.hear_log, **settings) as child:
            yield _Run(Path(command[0]).name, child, listener)
