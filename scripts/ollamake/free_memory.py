"""The memory that a job started now can have: of the machine, less what is in use, and within a container's or job's limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 of control groups writes a number near 2**63 for no limit."""


@dataclass(frozen=True)
class Memory:
    """Bytes: what there is in all, and what of it can be had without pushing other processes out."""

    total: int
    free: int


def free_memory(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    root: Path = Path("/sys/fs/cgroup"),
) -> Memory | None:
    """Return the memory of this machine that this process may use; None where the system does not say (no /proc).

    MemAvailable counts what the page cache gives back (man 5 proc_meminfo). Each control group above the process has a limit
    of its own, of which its processes' memory and cache are in use; the cache of inactive files is given back.
    """
    if not meminfo.is_file():
        return None
    found = {}
    for line in meminfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found[key] = int(value.split()[0]) * 1024
    if len(found) < 2:
        return None
    total, free = found["MemTotal"], found["MemAvailable"]
    for limit, used in _groups(membership, root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Memory(total, free)


def _groups(membership: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use) of the process's control groups that have a limit; files as in man 7 cgroups."""
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        cache = "total_inactive_file" if controllers else "inactive_file"
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            group = top.joinpath(*parts[:depth])
            # A folder that is not there, "max" and a file that may not be read: no limit known there.
            with suppress(OSError, ValueError, StopIteration):
                limit, used = (int((group / name).read_text()) for name in names)
                statistics = (group / "memory.stat").read_text().splitlines()
                given_back = next(int(line.split()[1]) for line in statistics if line.split()[0] == cache)
                if limit < _UNLIMITED:
                    yield limit, used - given_back
