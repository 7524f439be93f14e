"""Which quantization to take: the best that fits, why, and what the next better and the next smaller would mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.context_fit import ContextMemory
from ollamake.hardware import Budget
from ollamake.memory_rows import Asked, Places
from ollamake.published_quality import CANDIDATES

Row = Mapping[str, Any]


def recommend(
    ghost: Mapping[str, Any], memory: ContextMemory, rows: Sequence[Row], asked: Asked, places: Places
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the recommendation of plan.json, or None and a sentence that says why there is none and what to do.

    ``rows``: as memory_rows returns them. The unquantized type is the best of all, then come published_quality.CANDIDATES;
    of these, the first that fits the deciding place is recommended.
    """
    if places.deciding is None:
        return None, (
            "nothing is known of the memory: no GPU was found, and the RAM is unknown. Set hardware.gpus or hardware.ram_gib"
        )
    budget = places.budgets[places.deciding]
    unknown = memory.why_unknown(asked.kv_cache)
    if unknown is not None:
        return None, _unknown(ghost["name"], memory, asked, unknown)
    by_type = {row["type"]: row for row in rows if "refused" not in row}
    order = [by_type[kind] for kind in (ghost["outtype"], *CANDIDATES) if kind in by_type]
    chosen = next((index for index, row in enumerate(order) if _fit(row, places)["fits"]), None)
    if chosen is None:
        return None, _nothing_fits(ghost, memory, order, asked, places)
    row, fit = order[chosen], _fit(order[chosen], places)
    smaller = next((other for other in order[chosen + 1 :] if _fit(other, places)["free_mib"] > fit["free_mib"]), None)
    return {
        "type": row["type"],
        "reason": f"best of those that fit {budget.name}: {gib(fit['total_mib'])} of {gib(budget.usable_mib)} usable with"
        f" {context_words(memory.planned(asked.context), asked)}",
        "up": _up(order[chosen - 1], asked, places) if chosen else None,
        "down": _down(smaller, row, asked, places) if smaller else None,
    }, None


def gib(mib: int) -> str:
    """Return MiB in words, as GiB with one decimal, or as MiB where that would say nothing."""
    return f"{mib / 1024:,.1f} GiB" if mib >= 103 else f"{mib} MiB"


def context_words(context: int, asked: Asked) -> str:
    """Return a context in words, with what it is for."""
    each = " each" if asked.parallel > 1 else ""
    return f"a context of {context:,} tokens{each} ({cache_words(asked)})"


def cache_words(asked: Asked) -> str:
    """Return the type of the KV cache and the number of slots in words."""
    return f"{asked.kv_cache} cache, {asked.parallel} slot{'s' if asked.parallel > 1 else ''}"


def layers_words(fit: Mapping[str, Any], block_count: int) -> str:
    """Say how many layers go on the GPU of a model that does not fit as a whole, "" where that does not help.

    The output layer counts as one, as in llama.cpp's own "offloaded 41/65 layers".
    """
    if fit["gpu_layers"] is None:
        return ""
    return f"{fit['gpu_layers']} of its {block_count + 1} layers fit on the GPU"


def _fit(row: Row, places: Places) -> dict[str, Any]:
    return dict(row["fits"][places.deciding])


def _up(row: Row, asked: Asked, places: Places) -> dict[str, str]:
    fit = _fit(row, places)
    reason = f"{row['type']} needs {gib(fit['total_mib'])}, {gib(-fit['free_mib'])} more than there is"
    if context := fit["largest_context"][asked.kv_cache]:
        reason += f"; it fits with a context of up to {context:,} tokens"
    return {"type": row["type"], "reason": reason}


def _down(row: Row, chosen: Row, asked: Asked, places: Places) -> dict[str, str]:
    fit, of_chosen = _fit(row, places), _fit(chosen, places)
    reason = f"{row['type']} would leave {gib(fit['free_mib'] - of_chosen['free_mib'])} more"
    context = fit["largest_context"][asked.kv_cache]
    if context > of_chosen["largest_context"][asked.kv_cache]:
        reason += f", for a context of up to {context:,} tokens"
    quality = row["quality"]
    reason += f"; published quality: {quality['class']}" if quality else "; its quality is not published"
    return {"type": row["type"], "reason": reason}


def _unknown(name: str, memory: ContextMemory, asked: Asked, reason: str) -> str:
    if memory.known:
        return (
            f"{name} cannot have a KV cache of {asked.kv_cache} ({reason}), so nothing can be said to fit. Set plan.kv_cache"
            " to f16"
        )
    return (
        f"what {name} takes beside its weights is unknown ({reason}), so nothing can be said to fit. Build llama.cpp's"
        " programs with llama-fit-params, or choose by the sizes: set quantizations to a type"
    )


def _nothing_fits(
    ghost: Mapping[str, Any], memory: ContextMemory, order: Sequence[Row], asked: Asked, places: Places
) -> str:
    budget: Budget = places.budgets[places.deciding or 0]
    if not order:
        return (
            "llama-quantize makes none of the types that may be recommended of this model. Set quantizations to a type"
        )
    smallest = max(order, key=lambda row: _fit(row, places)["free_mib"])
    fit = _fit(smallest, places)
    context = memory.planned(asked.context)
    layers = layers_words(fit, ghost["block_count"])
    knobs = []
    if context > 256:
        shorter = fit["largest_context"][asked.kv_cache]
        knobs.append("reduce plan.context" + (f" ({shorter:,} tokens fit)" if shorter else ""))
    if asked.kv_cache == "f16" and memory.why_unknown("q8_0") is None:
        knobs.append("set plan.kv_cache to q8_0 or q4_0")
    knobs.append(
        "plan for more RAM (hardware.ram_gib)" if budget.kind == "ram" else "plan for a larger GPU (hardware.gpus)"
    )
    knobs.append("compare smaller models (plan.alternatives)")
    return (
        f"nothing fits {budget.name}: {smallest['type']}, the smallest candidate, needs {gib(fit['total_mib'])} with"
        f" {context_words(context, asked)}, there are {gib(budget.usable_mib)}{'; ' + layers if layers else ''}. What"
        f" helps: {', '.join(knobs)}"
    )
