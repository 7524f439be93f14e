"""What takes long says that it lives, and is silent once it is over."""

import logging
import threading
import time

import pytest

from ollamake import heartbeat
from ollamake.heartbeat import waiting


def wait_for_lines(caplog: pytest.LogCaptureFixture, count: int) -> None:
    deadline = time.perf_counter() + 10
    while len(caplog.messages) < count and time.perf_counter() < deadline:
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_LINES", 0.02)
    caplog.set_level(logging.INFO, "ollamake")


def test_a_long_wait_is_told_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    with waiting("the server creates m"):
        wait_for_lines(caplog, 3)
    assert len(caplog.messages) in (3, 4)
    assert set(caplog.messages) == {"the server creates m: 0 s"}


def test_the_seconds_are_those_since_the_wait_began(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1000.0, *(1000.0 + 10 * number for number in range(1, 1000))])
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(clock))
    with waiting("w"):
        wait_for_lines(caplog, 2)
    assert caplog.messages[:2] == ["w: 10 s", "w: 20 s"]


def test_a_short_wait_is_not_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_LINES", 60)
    began = time.monotonic()
    with waiting("w"):
        pass
    assert time.monotonic() - began < 5, "the end of a block waits for the next line"
    assert caplog.messages == []


def test_nothing_is_told_after_the_end_even_of_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    threads = threading.active_count()
    with pytest.raises(ValueError, match="the reason"), waiting("w"):
        raise ValueError("the reason")
    told = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == told
    assert threading.active_count() == threads
