"""A sign of life while something is waited for that does not tell its own progress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("ollamake")

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Say every ten seconds how long the block has been running."""
    began = time.monotonic()
    over = threading.Event()

    def say() -> None:
        while not over.wait(SECONDS_BETWEEN_LINES):
            log.info("%s: %d s", description, time.monotonic() - began)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
