"""Reading ahead and writing behind: what takes long in C (files, sha256) runs beside the arithmetic, a few portions deep."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
DEPTH = 6
"""Portions that may wait: enough for either side to be held up for a moment, few enough to bound memory."""


class _Stopped(Exception):
    """The other side has ended, so this one does."""


class _Hand(Generic[Item]):
    """A queue whose two sides can end each other: with an error, or because they are done."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Item] = queue.Queue(DEPTH)
        self._stopped = threading.Event()

    def put(self, item: Item) -> None:
        while True:
            if self._stopped.is_set():
                raise _Stopped
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def get(self) -> Item:
        while True:
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._stopped.is_set():
                    raise _Stopped from None

    def stop(self) -> None:
        self._stopped.set()


class ReadAhead(Generic[Item]):
    """Iterates over ``items`` in a thread of its own; an error there is raised here. To be used as a context manager."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self._hand: _Hand[tuple[str, Item | BaseException | None]] = _Hand()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._ended = False

    def _run(self) -> None:
        try:
            for item in self._items:
                self._hand.put(("item", item))
            self._hand.put(("end", None))
        except _Stopped:
            return
        except BaseException as error:
            self._hand.put(("error", error))

    def __enter__(self) -> ReadAhead[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._ended:
            for _ in self:
                pass
        self._hand.stop()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        what, value = self._hand.get()
        if what == "item":
            return value  # type: ignore[return-value]
        self._ended = True
        if isinstance(value, BaseException):
            raise value
        raise StopIteration


class WriteBehind(Generic[Item]):
    """Gives items to ``consume`` in a thread of its own, in order; an error there is raised by the next call.

    To be used as a context manager, on whose exit everything has been consumed.
    """

    def __init__(self, consume: Callable[[Item], object]) -> None:
        self._consume = consume
        self._hand: _Hand[Item | None] = _Hand()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write behind", daemon=True)

    def _run(self) -> None:
        try:
            while (item := self._hand.get()) is not None:
                self._consume(item)
        except _Stopped:
            return
        except BaseException as error:
            self._error = error
            self._hand.stop()

    def write(self, item: Item) -> None:
        """Hand an item over; waits when the other side is behind."""
        try:
            self._hand.put(item)
        except _Stopped:
            assert self._error is not None
            raise self._error from None

    def __enter__(self) -> WriteBehind[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._hand.stop()
            self._thread.join()
            return
        with contextlib.suppress(_Stopped):
            self._hand.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
