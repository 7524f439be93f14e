"""The memory and the disk that bitsandbytes checkpoints need, from merge_plan.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ollamake.bitsandbytes_sizes import is_linear, transformers_bytes
from ollamake.job_needs import METADATA_BYTES, Needs, elements, shard_bytes, vocabulary

_NAMES = {"nf4": "NF4", "int8": "INT8"}
_QUANTIZE_BYTES = 1_200_000_000
"""transformers and bitsandbytes with all that they import, bands of some MB and the mapped window of the shard."""
_SCALE_BYTES = 12
"""For each block of 64 weights in NF4: its maximum in float32, a copy and what it is quantized to."""

_COPIES_OF_CHECKPOINT = 2
"""As loaded, and arranged for the processor when it first runs."""
_LOGIT_BYTES = 16
"""For each scored token of a chunk and each token of the vocabulary: the logits of both models in float32, and as they come."""


def checkpoint_bytes(plan: Mapping[str, Any], precision: str) -> int:
    """Return about how many bytes a checkpoint has: the head in 16 bits, every other linear layer quantized."""
    return _bytes((tensor for shard in plan["shards"] for tensor in shard["tensors"]), precision) + METADATA_BYTES


def quantize_bitsandbytes(plan: Mapping[str, Any], shard: str, precision: str) -> Needs:
    """Return the needs of quantizing one merged shard. Raises KeyError if the plan has none of that name."""
    tensors = next((one["tensors"] for one in plan["shards"] if one["file"] == shard), None)
    if tensors is None:
        raise KeyError(shard)
    largest = max(
        (math.prod(one["shape"]) for one in tensors if is_linear(one["name"], tuple(one["shape"]))), default=0
    )
    memory = _QUANTIZE_BYTES + largest / 64 * _SCALE_BYTES
    return Needs(math.ceil(memory / 1e6), max(1, math.ceil(_bytes(tensors, precision) / 1e6)))


def evaluate_bitsandbytes(plan: Mapping[str, Any], precision: str, context: int) -> Needs:
    """Return the needs of comparing a checkpoint with the merged weights in float32, in chunks of ``context`` tokens."""
    weights = 4 * elements(plan) + _COPIES_OF_CHECKPOINT * checkpoint_bytes(plan, precision)
    read = max(shard_bytes(one["tensors"]) for one in plan["shards"])
    logits = _LOGIT_BYTES * vocabulary(plan) * context // 2
    return Needs(math.ceil((_QUANTIZE_BYTES + weights + read + logits) / 1e6), 1)


def bitsandbytes_jobs(
    plan: Mapping[str, Any], precisions: Iterable[str], context: int | None
) -> list[tuple[str, Needs]]:
    """Return (what it does, needs) of all jobs of some checkpoints; ``context`` of their evaluation, None: there is none."""
    jobs = []
    for precision in precisions:
        for one in plan["shards"]:
            job = f"quantizing {one['file']} to {precision}"
            jobs.append((job, quantize_bitsandbytes(plan, one["file"], precision)))
        if context is not None:
            job = f"evaluating {precision} against the merged weights in float32 (bitsandbytes.evaluate)"
            jobs.append((job, evaluate_bitsandbytes(plan, precision, context)))
    return jobs


def _bytes(tensors: Iterable[Mapping[str, Any]], precision: str) -> int:
    stored = [(tensor["name"], tensor["stored"], tuple(tensor["shape"])) for tensor in tensors]
    return transformers_bytes(stored)[_NAMES[precision]]
