"""Regular expressions that come with an adapter, matched for a limited time: one may be made to take until the end of days."""

from __future__ import annotations

import re
import signal
import threading
from types import FrameType

from ollamake.errors import OllamakeError

MAX_SECONDS = 1.0
"""Of computing, for one pattern on one name; honest ones take microseconds."""
NO_PATTERN = (re.error, RecursionError, OverflowError)
"""What re raises for a text that is none."""


class _TooSlow(Exception):
    """The time is over."""


def matches_whole(pattern: str, name: str, key: str, before: str = "") -> bool:
    """Whether a pattern matches all of a name, or what follows ``before`` in it, a pattern of our own.

    Raises OllamakeError, naming ``key``, for what is no pattern, or takes too long. The time is limited in a process's first
    thread only, in which every job reads its adapters: re can be interrupted by a signal alone.
    """
    try:
        with _Limited():
            return re.fullmatch(f"{before}({pattern})" if before else pattern, name) is not None
    except _TooSlow:
        raise OllamakeError(
            f"{key}: the pattern {_short(pattern)} takes more than {MAX_SECONDS:.0f} s to be compared with the name"
            f" {_short(name)}. Write it without repetitions within repetitions."
        ) from None
    except NO_PATTERN as error:
        raise OllamakeError(f"{key}: {_short(pattern)} is not a regular expression: {error}") from error


class _Limited:
    """Raises _TooSlow in its block when the time is over."""

    def __enter__(self) -> None:
        self._is_first = threading.current_thread() is threading.main_thread()
        if self._is_first:
            self._before = signal.signal(signal.SIGVTALRM, _give_up)
            signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)

    def __exit__(self, *_error: object) -> None:
        if self._is_first:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._before)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _TooSlow


def _short(text: str) -> str:
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}..."
