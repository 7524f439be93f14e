"""Ports for servers that a test may kill and start again at the same address."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

_GIVEN_BY_THE_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")
_A_WORKER = 1000
"""Ports of each worker of pytest-xdist."""


def free_port() -> int:
    """Return a free port that stays free while its server is down, whatever other tests do at the same time.

    A port that the system chose may be given to any connection once nobody listens there; so it is one below those that
    the system gives, and one that no other worker of this run takes.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    end = _first_given_by_the_system() - worker * _A_WORKER
    for port in random.sample(range(end - _A_WORKER, end), _A_WORKER):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"none of the ports {end - _A_WORKER} to {end - 1} is free")


def _first_given_by_the_system() -> int:
    try:
        return int(_GIVEN_BY_THE_SYSTEM.read_text(encoding="ascii").split()[0])
    except FileNotFoundError:  # not Linux
        return 32768
