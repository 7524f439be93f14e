"""SIGTERM as an interruption, and parts that no interruption divides: else started programs would go on by themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _State:
    """How many parts are under way that must not be divided, and whether a signal came in one of them."""

    held_back = 0
    came = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on SIGTERM, as on Ctrl-C. Python hands signals to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if _State.held_back:
            _State.came = True
        else:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        # What is ignored, as in a shell's background jobs, stays so.
        if before[number] != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])


@contextmanager
def undivided() -> Iterator[None]:
    """Within interruptible(), raise KeyboardInterrupt only when the block is over."""
    _State.held_back += 1
    try:
        yield
    finally:
        _State.held_back -= 1
        if _State.came and not _State.held_back:
            _State.came = False
            raise KeyboardInterrupt
