"""Reading ahead and writing behind keep the order, end together, and let no error disappear."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from ollamake.overlapped_io import ReadAhead, WriteBehind


def numbers(count: int, fail_at: int | None = None) -> Iterator[int]:
    for number in range(count):
        if number == fail_at:
            raise OSError("the disk is gone")
        yield number


def test_order_and_end() -> None:
    written: list[int] = []
    with WriteBehind(written.append) as behind, ReadAhead(numbers(1000)) as ahead:
        for number in ahead:
            behind.write(number)
    assert written == list(range(1000))


def copy(items: Iterator[int], consume: Callable[[int], object], stop_at: int | None = None) -> None:
    with WriteBehind(consume) as behind, ReadAhead(items) as ahead:
        for number in ahead:
            behind.write(number)
            if number == stop_at:
                raise KeyboardInterrupt


def test_an_error_of_the_reader_is_raised() -> None:
    written: list[int] = []
    with pytest.raises(OSError, match="disk is gone"):
        copy(numbers(10, fail_at=5), written.append)
    assert written == list(range(len(written)))


def test_what_is_left_is_read_to_its_end() -> None:
    seen: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            seen.append(number)
            yield number

    with ReadAhead(items()) as ahead:
        next(ahead)
    assert seen == list(range(50))


@pytest.mark.parametrize("count", [1, 1000])
def test_an_error_of_the_writer_is_raised(count: int) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        copy(numbers(count), full)


def test_an_error_of_the_loop_ends_both() -> None:
    with pytest.raises(KeyboardInterrupt):
        copy(numbers(10**9), lambda _: None, stop_at=100)
    assert not any(thread.name in ("read ahead", "write behind") for thread in threading.enumerate())
