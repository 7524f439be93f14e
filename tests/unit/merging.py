"""Merges a small checkpoint as the rules do, and compares it with what peft makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.merge_plan import plan_merge
from ollamake.model_files import write_model_files
from ollamake.shard_stream import merge_shard

SIGNIFICANT_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}
SMALLEST_EXPONENT = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126}


def plan_of(base: Path, *adapters: Path, dtype: str = "auto", weights: Sequence[float] = (1.0, 1.0)) -> dict[str, Any]:
    read = [read_adapter(adapter, weight) for adapter, weight in zip(adapters, weights, strict=False)]
    return plan_merge(read_checkpoint(str(base), "base"), read, dtype)


def merge_all(plan: dict[str, Any], output: Path, threads: int = 1) -> list[dict[str, Any]]:
    return [merge_shard(plan, shard["file"], output / shard["file"], threads) for shard in plan["shards"]]


def merge_checkpoint(base: Path, adapters: Sequence[Path], output: Path, **options: Any) -> dict[str, Any]:
    """Write a whole merged checkpoint and return its plan."""
    plan = plan_of(base, *adapters, **options)
    merge_all(plan, output)
    write_model_files(base, adapters, plan, output / "model_files.json")
    return plan


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def half_ulp(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance of neighbouring numbers of ``dtype`` at ``exact`` (IEEE 754), in float64."""
    exponent = torch.frexp(exact.abs())[1].to(torch.float64) - 1
    exponent = exponent.clamp(min=SMALLEST_EXPONENT[dtype])
    return torch.exp2(exponent - SIGNIFICANT_BITS[dtype])


def assert_rounded_once(
    ours: torch.Tensor, exact: torch.Tensor, name: str, operands: torch.Tensor | float = 0.0
) -> None:
    """Within half an ulp of the exact sum, but for the error of float32 arithmetic before the rounding.

    That error is bounded by (rank + 3) roundings of 2^-24 of the sum of the operands' magnitudes (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1); it matters only where the exact sum lies that close to the middle
    between two numbers.
    """
    slack = (exact.abs() + operands) * 2.0**-24 * 20
    distance = (ours.to(torch.float64) - exact).abs()
    worst = (distance - half_ulp(exact, ours.dtype) - slack).max()
    assert worst <= 0, f"{name}: {float(worst)} beyond half an ulp"
