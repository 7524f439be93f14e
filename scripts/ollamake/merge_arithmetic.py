"""W + left @ right: float32 arithmetic, one rounding, a band of rows at a time.

Memory is bounded by the band, not by the tensor. Rounding to bfloat16 deletes most of a small update because the base
lies on bfloat16's grid (an update of 3e-4 of the weight's size survives by 18 %); how much of the intended update is in
the stored tensor, its survival, is therefore measured for each tensor while it passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ollamake.errors import OllamakeError

BAND_ELEMENTS = 1 << 20
"""Elements of a band: 4 MiB in float32, so that base, update, sum and result stay in a processor's cache."""

FLOAT16_MAX = 65504.0

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Scratch:
    """Memory for the intermediate results of a band, taken once: fresh memory costs more than the arithmetic in it."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def of(self, use: str, shape: Sequence[int]) -> torch.Tensor:
        """Return float32 memory of a shape; what it held for the same use is gone."""
        size = math.prod(shape)
        known = self._memory.get(use)
        if known is None or known.numel() < size:
            known = self._memory[use] = torch.empty(size)
        return known[:size].view(tuple(shape))


@dataclass
class MergeStatistics:
    """What a merge did to one tensor, summed over its bands in float64."""

    base_square: float = 0.0
    delta_square: float = 0.0
    stored_dot_delta: float = 0.0
    largest_delta: float = 0.0
    _delta: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    """The update of the band that is being counted, flat."""

    def add_update(
        self, base: torch.Tensor, value: torch.Tensor, update: torch.Tensor | None, scratch: Scratch
    ) -> float:
        """Count a band before and after the edit, and return a bound of the magnitudes in ``value`` (NaN if there are some).

        ``update`` is value - base where that is at hand. Sums are float32 within a band.
        """
        if not base.numel():
            return 0.0
        base = base.reshape(-1)
        if update is None:
            update = torch.sub(value.reshape(-1), base, out=scratch.of("delta", base.shape))
        delta = self._delta = update.reshape(-1)
        low, high = (float(end) for end in torch.aminmax(delta))
        squares = float(torch.dot(base, base)), float(torch.dot(delta, delta))
        self.largest_delta = max(self.largest_delta, -low, high)
        self.base_square += squares[0]
        self.delta_square += squares[1]
        return squares[0] ** 0.5 + squares[1] ** 0.5

    def add_stored(self, base: torch.Tensor, stored: torch.Tensor, scratch: Scratch) -> None:
        """Count what is stored of the band that add_update has counted.

        Survival is the projection of (stored - base) on the update.
        """
        if not base.numel():
            return
        moved = scratch.of("moved", base.shape).copy_(stored.view(base.shape)).sub_(base)
        self.stored_dot_delta += float(torch.dot(moved.view(-1), self._delta))

    def as_json(self) -> dict[str, float | None]:
        """Return the relative size of the update, the part of it that was stored, and its largest element.

        relative_norm is None where the base is zero, survival where the update is.
        """
        size = self.delta_square**0.5
        base = self.base_square**0.5
        return {
            "delta_norm": size,
            "relative_norm": size / base if base else None,
            "survival": self.stored_dot_delta / self.delta_square if self.delta_square else None,
            "largest_delta": self.largest_delta,
        }


def bands(rows: int, columns: int, unbroken: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield [first, last) rows of each band of a matrix; none crosses a multiple of ``unbroken`` rows."""
    height = max(1, BAND_ELEMENTS // max(1, columns))
    for start in range(0, rows, unbroken or max(rows, 1)):
        end = min(rows, start + (unbroken or rows))
        for first in range(start, end, height):
            yield first, min(end, first + height)


def with_magnitudes(sums: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the rows of ``sums`` [rows, columns] scaled to the norms ``magnitudes`` [rows]: DoRA (arXiv:2402.09353, eq. 5)."""
    return sums * (magnitudes / torch.linalg.vector_norm(sums, dim=1)).unsqueeze(1)


def dequantized(values: torch.Tensor, scales: torch.Tensor, first: int, block: tuple[int, int]) -> torch.Tensor:
    """Return float8 rows [first, ...) times the scale of the block each value lies in, in float32.

    ``values`` [rows, columns], ``scales`` [ceil(all rows / block), ceil(columns / block)].
    """
    rows = torch.arange(first, first + values.shape[0]) // block[0]
    wide = scales.to(torch.float32)[rows].repeat_interleave(block[1], dim=1)[:, : values.shape[1]]
    return values.to(torch.float32).mul_(wide)


def stored_as(name: str, values: torch.Tensor, stored: str, bound: float | None = None) -> torch.Tensor:
    """Round ``values`` to the dtype ``stored``, refusing what it cannot hold. Raises OllamakeError naming the tensor.

    ``bound``: what no value's magnitude exceeds, NaN if there may be NaN; it spares looking where it is low enough.
    """
    if not values.numel():
        return values.to(TORCH_DTYPES[stored])
    if bound is not None and bound < FLOAT16_MAX:
        return values.to(TORCH_DTYPES[stored], copy=True)
    low, high = (float(end) for end in torch.aminmax(values))
    largest = max(-low, high)
    if not largest < float("inf"):  # NaN is not smaller either
        bad = values[~torch.isfinite(values)]
        raise OllamakeError(
            f"{name} has {bad.numel()} values that are not numbers (first: {float(bad[0])}), in the base or after the"
            " merge. The base or the adapter is damaged, or its training diverged; nothing of it is written."
        )
    result = values.to(TORCH_DTYPES[stored], copy=True)  # ``values`` may be memory that the next band is computed in
    if stored in ("F16", "BF16") and largest > FLOAT16_MAX and not torch.isfinite(result).all():
        known = {"F16": "float16", "BF16": "bfloat16"}[stored]
        raise OllamakeError(
            f"{name} has values up to {largest:.6g}, more than {known} can hold."
            f" Set `merge: {{dtype: {'bfloat16` or `merge: {dtype: float32' if stored == 'F16' else 'float32'}}}`."
        )
    return result
