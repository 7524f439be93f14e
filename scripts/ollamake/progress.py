"""Progress of long jobs: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import IO, Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class _LineByLine:
    """Turns the carriage returns of a progress bar into lines, for a log or a pipe."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(total: int, description: str, *, unit: str = "B", initial: int = 0) -> tqdm[Any]:
    """Return a progress bar over ``total`` units, ``initial`` of which are done, to be used as a context manager.

    Bytes are shown in powers of 1000. Off a terminal a line is written every ten seconds, so that a log of an hour
    has some hundred lines and a job of seconds has one.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr if on_terminal else _LineByLine(sys.stderr),
        mininterval=0.2 if on_terminal else SECONDS_BETWEEN_LINES,
        ascii=not on_terminal,
        ncols=None if on_terminal else 100,
    )
