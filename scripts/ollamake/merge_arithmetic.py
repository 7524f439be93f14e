"""W + scale * (B @ A): float32 arithmetic, one rounding, a band of rows at a time.

Memory is bounded by the band, not by the tensor. Rounding to bfloat16 deletes most of a small update because the base
lies on bfloat16's grid (an update of 3e-4 of the weight's size survives by 18 %); how much of the intended update is in
the stored tensor, its survival, is therefore measured for each tensor while it passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ollamake.errors import OllamakeError

BAND_ELEMENTS = 4 << 20
"""Elements of a band: 16 MiB in float32, so that base, update, sum and result together stay near 64 MiB."""

FLOAT16_MAX = 65504.0

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class MergeStatistics:
    """What a merge did to one tensor, summed over its bands in float64."""

    base_square: float = 0.0
    delta_square: float = 0.0
    stored_dot_delta: float = 0.0
    largest_delta: float = 0.0
    rows: int = field(default=0, repr=False)

    def as_json(self) -> dict[str, float | None]:
        """Return the relative size of the update, the part of it that was stored, and its largest element.

        Survival is the projection of (stored - base) on the update, divided by the update's size; None where the
        update is zero.
        """
        size = self.delta_square**0.5
        base = self.base_square**0.5
        return {
            "delta_norm": size,
            "relative_norm": size / base if base else None,
            "survival": self.stored_dot_delta / self.delta_square if self.delta_square else None,
            "largest_delta": self.largest_delta,
        }


def bands(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) rows of each band of a matrix."""
    height = max(1, BAND_ELEMENTS // max(1, columns))
    for first in range(0, rows, height):
        yield first, min(rows, first + height)


def merge_band(
    name: str,
    base: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    stored: str,
    statistics: MergeStatistics,
) -> torch.Tensor:
    """Return a band of ``base + scale * (b @ a)`` in the dtype ``stored``.

    ``base`` [rows, columns] in any floating dtype, ``a`` [rank, columns] and ``b`` [rows, rank] in float32. Raises
    OllamakeError naming the tensor for NaN, infinity and what float16 cannot hold.
    """
    wide = base.to(torch.float32)
    delta = (b @ a).mul_(scale)
    total = wide + delta
    result = stored_as(name, total, stored)
    statistics.base_square += _dot(wide, wide)
    statistics.delta_square += _dot(delta, delta)
    statistics.stored_dot_delta += _dot(result.to(torch.float32) - wide, delta)
    statistics.largest_delta = max(statistics.largest_delta, float(delta.abs().max()) if delta.numel() else 0.0)
    return result


def stored_as(name: str, values: torch.Tensor, stored: str) -> torch.Tensor:
    """Round ``values`` to the dtype ``stored``, refusing what it cannot hold. Raises OllamakeError naming the tensor."""
    if not torch.isfinite(values).all():
        bad = values[~torch.isfinite(values)]
        raise OllamakeError(
            f"{name} has {bad.numel()} values that are not numbers (first: {float(bad[0])}), in the base or after the"
            " merge. The base or the adapter is damaged, or its training diverged; nothing of it is written."
        )
    result = values.to(TORCH_DTYPES[stored])
    if stored == "F16" and not torch.isfinite(result).all():
        largest = float(values.abs().max())
        raise OllamakeError(
            f"{name} has values up to {largest:.6g}, more than float16 can hold ({FLOAT16_MAX:.0f})."
            " Set `merge: {dtype: bfloat16}` or `merge: {dtype: float32}`."
        )
    return result


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    """Inner product of two bands: float32 within a row, float64 over the rows."""
    return float((one * other).sum(dim=-1).sum(dtype=torch.float64))
