"""Reading ahead and writing behind keep the order, end together, and let no error disappear."""

from __future__ import annotations

import threading
from collections.abc import Iterator

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
    assert threading.active_count() == 1 or not any(
        t.name in ("read ahead", "write behind") for t in threading.enumerate()
    )


def test_an_error_of_the_reader_reaches_the_loop() -> None:
    with pytest.raises(OSError, match="disk is gone"), ReadAhead(numbers(10, fail_at=5)) as ahead:
        assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
        next(ahead)


def test_what_is_left_is_read_to_its_end() -> None:
    seen: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            seen.append(number)
            yield number

    with ReadAhead(items()) as ahead:
        next(ahead)
    assert seen == list(range(50))


def test_an_error_of_the_writer_is_raised() -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), WriteBehind(full) as behind:
        for number in range(1000):
            behind.write(number)
    with pytest.raises(OSError, match="no space left"), WriteBehind(full) as behind:
        behind.write(1)


def test_an_error_of_the_loop_ends_both() -> None:
    with pytest.raises(KeyboardInterrupt), WriteBehind(lambda _: None) as behind, ReadAhead(numbers(10**9)) as ahead:
        for number in ahead:
            behind.write(number)
            if number == 100:
                raise KeyboardInterrupt
    assert not any(thread.name in ("read ahead", "write behind") for thread in threading.enumerate())
