"""Which models may begin to fill the disk, so that the intermediate files of one go before those of the next are made.

A turn is one model, or several that need each other's files. Its intermediate files are there from its first merged shard
until the last job that uses them; what it keeps stays. A turn begins when what it takes at its peak fits beside what the turns
that have begun take at theirs, and beside what finished ones keep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Take:
    """Bytes that a turn adds to the disk: at its ``peak``, and what ``stays`` of them when it is done."""

    peak: int
    stays: int


class DiskTurns:
    """The turns of one run.

    ``allowed`` returns the bytes that the run may add to the disk, ``take`` those of a turn; both are asked when the first
    turn begins, and when that turn does, since files that are there already take nothing.
    """

    def __init__(self, allowed: Callable[[], int], take: Callable[[str], Take]) -> None:
        self._allowed, self._take = allowed, take
        self._limit: int | None = None
        self._begun: dict[str, Take] = {}
        self._kept = 0

    def may_write(self, waiting: Iterable[str], unfinished: Collection[str], *, anything_runs: bool) -> set[str]:
        """Return which turns may write, of those with a job that waits to do so, in the order in which they are to begin.

        ``unfinished``: turns with jobs that are still to be done. A turn that fits nowhere begins when nothing else can be
        done: whether its disk suffices the check of its inputs has said.
        """
        if self._limit is None:
            self._limit = self._allowed()
        for turn in [turn for turn in self._begun if turn not in unfinished]:
            self._kept += max(0, self._begun.pop(turn).stays)
        for turn in waiting:
            if turn in self._begun:
                continue
            take = self._take(turn)
            taken = self._kept + sum(one.peak for one in self._begun.values())
            if taken + take.peak > self._limit and (self._begun or anything_runs):
                break
            self._begun[turn] = take
        return set(self._begun)

    def begin_anyway(self, turn: str) -> set[str]:
        """Let a turn begin because nothing else can be done: what the others wait for has failed, or needs this one."""
        self._begun.setdefault(turn, self._take(turn))
        return set(self._begun)
