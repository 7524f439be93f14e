"""What every quantization of a model takes in every place there is for it: the rows of plan.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamake.context_fit import KV_TYPES, ContextMemory, Need, gpu_layers, mib
from ollamake.hardware import Budget
from ollamake.published_quality import CANDIDATES, by_quality, published_quality


@dataclass(frozen=True)
class Asked:
    """What a model must leave room for: ``context`` tokens in each of ``parallel`` slots, with a type of KV cache."""

    context: int
    parallel: int
    kv_cache: str
    margin_gib: float


@dataclass(frozen=True)
class Places:
    """Where a model may go. ``deciding``: the index of the place that it is chosen for, None if there is none.

    ``unified``: GPU and host have one memory, so that what stays in the host's takes room of the same.
    """

    budgets: Sequence[Budget]
    deciding: int | None
    unified: bool


def memory_rows(ghost: Mapping[str, Any], memory: ContextMemory, asked: Asked, places: Places) -> list[dict[str, Any]]:
    """Return a row for each type in ghost.json, best quality first, those that llama-quantize refuses last.

    The context is the asked one, or the trained length if that is less. Without figures of the memory beside the weights
    nothing is said to fit or not to fit: ``fits``, ``total_mib`` and so on are None.
    """
    need = memory.need(asked.kv_cache, memory.planned(asked.context))
    rows, refused = [], []
    for kind in by_quality():
        size = ghost["types"].get(kind)
        if size is None:
            continue
        if "refused" in size:
            refused.append({"type": kind, "refused": size["refused"]})
            continue
        rows.append(
            {
                "type": kind,
                "imatrix": size["imatrix"],
                "bytes": size["bytes"],
                "bits_per_weight": size["bits_per_weight"],
                "gpu_mib": mib(_on_gpu(size)),
                "host_mib": mib(size["embedding_bytes"]),
                "quality": published_quality(kind, size["imatrix"]),
                "candidate": kind in CANDIDATES,
                "fits": [_fit(size, memory, need, budget, places.unified) for budget in places.budgets],
            }
        )
    return rows + refused


def _on_gpu(size: Mapping[str, Any]) -> int:
    """Return the bytes of weights on the GPU: all but the input embedding, unless it is the output layer as well."""
    return int(sum(size["block_bytes"]) + size["other_bytes"] + (size["embedding_bytes"] if size["tied"] else 0))


def _fit(
    size: Mapping[str, Any], memory: ContextMemory, need: Need | None, budget: Budget, unified: bool
) -> dict[str, Any]:
    one_memory = unified or budget.kind == "ram"
    once = sum(size["block_bytes"]) + size["other_bytes"] + size["embedding_bytes"]
    weights_mib = mib(once if one_memory else _on_gpu(size))
    free_mib = budget.usable_mib - weights_mib
    largest = {kv: memory.largest(kv, free_mib, budget.devices) for kv in KV_TYPES}
    if need is None:
        return {
            "fits": None,
            "total_mib": None,
            "free_mib": None,
            "largest_context": largest,
            "gpu_layers": None,
        }
    free_mib -= need.kv_mib + budget.devices * need.compute_mib
    fits = free_mib >= 0
    # In one memory a layer that is not on the GPU takes the same room.
    layers = None
    if not fits and not one_memory:
        blocks = size["block_bytes"]
        layers = gpu_layers(_on_gpu(size) - sum(blocks), blocks, need, budget.usable_mib, budget.devices)
    return {
        "fits": fits,
        "total_mib": budget.usable_mib - free_mib,
        "free_mib": free_mib,
        "largest_context": largest,
        "gpu_layers": layers,
    }
