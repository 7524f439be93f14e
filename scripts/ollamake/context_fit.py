"""What a context takes beside the weights, between the measured contexts too, and how long a context fits.

The figures are those of ghost.json: MiB of the KV cache and of the compute buffer for some contexts, with all layers on one
device. Both grow in steps of 256 tokens (src/llama-context.cpp:290 of llama.cpp rounds a slot's context up to 256 cells).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.memory_formula import KV_BITS

CELLS = 256
"""Tokens by which a slot's context grows."""

KV_TYPES = tuple(KV_BITS)
"""The types of the KV cache, the largest first."""

_Points = list[tuple[int, int]]
"""(cells, MiB), in the order of cells."""


@dataclass(frozen=True)
class Need:
    """MiB of the KV cache of all slots, and of the compute buffer on each device."""

    kv_mib: int
    compute_mib: int


class ContextMemory:
    """The memory of one model's contexts with a number of slots; every context is that of one slot, in tokens.

    ``limit``: the longest context, which is the trained length or the longest that was measured, whichever is less; None if
    nothing was measured. With one type of cache it can be less, see ``longest``.
    """

    def __init__(self, ghost: Mapping[str, Any], parallel: int) -> None:
        """``ghost``: as in ghost.json, or plan.json. Raises OllamakeError if ``parallel`` was not measured.

        That llama.cpp gives up on so many slots is a measurement, too; see why_unknown.
        """
        memory = ghost["memory"]
        self.trained: int | None = ghost["trained_context"]
        self.known = memory["source"] is not None
        self.reason: str = "" if self.known else memory.get("reason") or "llama-fit-params says nothing of it"
        refused_slots = memory.get("impossible_slots") or {}
        self.impossible: dict[str, str] = dict(memory.get("impossible") or {})
        """Type of cache -> llama.cpp's words, of those that this number of slots cannot have."""
        for kv, words in refused_slots.items():
            if str(parallel) in words:
                many = "1 slot" if parallel == 1 else f"{parallel} slots"
                self.impossible[kv] = f"with {many}: {words[str(parallel)]}"
        rows = memory.get("rows") or [] if self.known else []
        measured = sorted(
            {row["parallel"] for row in rows} | {int(count) for words in refused_slots.values() for count in words}
        )
        if self.known and parallel not in measured:
            found = ", ".join(map(str, measured)) or "none"
            raise OllamakeError(
                f"plan.parallel: expected a number of slots that {ghost['name']} was measured with ({found}); found"
                f" {parallel}. Take one of them, or measure the model anew with {parallel} slots"
            )
        self._kv: dict[str, _Points] = {}
        self._compute: dict[str, _Points] = {}
        self._longest: dict[str, int] = {}
        for kv in KV_TYPES:
            of_type = [row for row in rows if row["kv"] == kv and row["parallel"] == parallel]
            if of_type:
                self._kv[kv] = _points(of_type, "kv_mib")
                self._compute[kv] = _points(of_type, "compute_mib")
                self._longest[kv] = max(row["context"] for row in of_type)
        longest = max(self._longest.values(), default=None)
        self.limit: int | None = longest if longest is None or not self.trained else min(longest, self.trained)

    def planned(self, asked: int) -> int:
        """Return the context to plan with where ``asked`` tokens are asked: at most the trained length."""
        return min(asked, self.trained) if self.trained else asked

    def longest(self, kv: str) -> int | None:
        """Return the longest context that anything is known of with that type of cache, None if nothing is."""
        return None if kv not in self._kv or self.limit is None else min(self.limit, self._longest[kv])

    def why_unknown(self, kv: str) -> str | None:
        """Say why nothing is known of contexts with that type of cache and these slots, or return None if it is."""
        if kv in self._kv:
            return None
        return self.impossible.get(kv, "it was not measured") if self.known else self.reason

    def need(self, kv: str, context: int) -> Need | None:
        """Return what a context takes, None where nothing is known (see why_unknown).

        Raises OllamakeError for a context longer than the longest measured one.
        """
        if kv not in self._kv:
            return None
        cells = _padded(context)
        if cells > self._kv[kv][-1][0]:
            raise OllamakeError(
                f"plan.context: expected at most the {self._kv[kv][-1][0]:,} tokens that were measured; found {context:,}."
                " Take a shorter one, or measure the model anew with this one"
            )
        return Need(_kv_between(self._kv[kv], cells), _compute_between(self._compute[kv], cells))

    def largest(self, kv: str, free_mib: int, devices: int) -> int | None:
        """Return the longest context that fits beside the weights, None where nothing is known.

        ``free_mib``: what the weights leave on all ``devices``. A multiple of 256, or ``longest``; 0 if not even 256 fit.
        """
        limit = self.longest(kv)
        if limit is None:
            return None
        fitting, too_many = 0, -(-limit // CELLS) + 1
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            need = self.need(kv, min(middle * CELLS, limit))
            if need is not None and need.kv_mib + devices * need.compute_mib <= free_mib:
                fitting = middle
            else:
                too_many = middle
        return min(fitting * CELLS, limit)


def gpu_layers(output_bytes: int, block_bytes: Sequence[int], need: Need, usable_mib: int, devices: int) -> int:
    """Return the largest -ngl (Ollama's num_gpu) that fits the GPU, of a model that does not fit as a whole; 0 if none.

    llama.cpp takes the output layer first and then the blocks from the last on, each with its part of the KV cache, so that
    -ngl is one more than the number of blocks there (src/llama-model.cpp:1589 and 1614).
    """
    free_mib = usable_mib - devices * need.compute_mib
    weights = output_bytes
    if mib(weights) > free_mib:
        return 0
    for blocks, block in enumerate(reversed(block_bytes), start=1):
        weights += block
        if mib(weights) + -(-need.kv_mib * blocks // len(block_bytes)) > free_mib:
            return blocks
    return len(block_bytes) + 1


def mib(count: int) -> int:
    """Return bytes as MiB, rounded up."""
    return -(-count >> 20)


def _padded(context: int) -> int:
    return -(-context // CELLS) * CELLS


def _points(rows: Sequence[Mapping[str, int]], key: str) -> _Points:
    points: dict[int, int] = {}
    for row in rows:
        cells = _padded(row["context"])
        points[cells] = max(row[key], points.get(cells, 0))
    return sorted(points.items())


def _line(first: tuple[int, int], second: tuple[int, int], cells: int) -> int:
    """Return the MiB at ``cells`` on the line through two points, rounded up."""
    (start, low), (end, high) = first, second
    return low - (low - high) * (cells - start) // (end - start)


def _kv_between(points: _Points, cells: int) -> int:
    """Return the MiB of the KV cache at ``cells``, which are not more than the last point's.

    It is linear, but for sliding windows, whose part stops growing somewhere between two points: there the neighbours'
    lines, drawn on to where they meet, are the cache itself, while the line between the two points is too low. Before the
    last point only the line from the left is known, which is too high if anything, as is that of the first two points
    where it is drawn on to less than the first.
    """
    at = bisect_left(points, (cells, 0))
    right = points[at]
    if right[0] == cells or len(points) == 1:
        return right[1]
    if at == 0:
        return max(0, min(right[1], _line(right, points[1], cells)))
    found = _line(points[at - 1], right, cells)
    if at >= 2:
        drawn_on = _line(points[at - 2], points[at - 1], cells)
        if at + 1 < len(points):
            drawn_on = min(drawn_on, _line(right, points[at + 1], cells))
        found = max(found, drawn_on)
    return min(found, right[1])


def _compute_between(points: _Points, cells: int) -> int:
    """Return the MiB of the compute buffer at ``cells``; below the first point what it is there.

    It is the largest of several lines, so the line between two points is never too low.
    """
    at = bisect_left(points, (cells, 0))
    if at == 0 or points[at][0] == cells:
        return points[at][1]
    return _line(points[at - 1], points[at], cells)
