"""The context that ``num_ctx: auto`` takes: the largest that fits where the model is to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.context_fit import ContextMemory
from ollamake.errors import OllamakeError
from ollamake.memory_rows import Asked, Places
from ollamake.plan_recommendation import cache_words, gib, layers_words

_WORTH_IT = 2048
"""Tokens: with a shorter context than this a model is of more use with some of its layers in RAM."""


def planned_contexts(
    rows: Sequence[Mapping[str, Any]], memory: ContextMemory, asked: Asked, places: Places, block_count: int
) -> dict[str, dict[str, Any]]:
    """Return type -> ``{"tokens", "reason"}`` for every type of the rows that is not refused (num_ctx of plan.json)."""
    return {row["type"]: _planned(row, memory, asked, places, block_count) for row in rows if "refused" not in row}


def num_ctx_of_plan(plan: Mapping[str, Any], quantization: str) -> tuple[int, str]:
    """Return what ``num_ctx: auto`` is for a type, in tokens, and where it comes from, in one line for a comment.

    ``plan``: plan.json. Raises OllamakeError for a type that the plan has no context of.
    """
    planned = plan["num_ctx"].get(quantization)
    if planned is None:
        refused = next(
            (row["refused"] for row in plan["rows"] if row["type"] == quantization and "refused" in row), None
        )
        why = f"llama-quantize refuses it: {refused}" if refused else "the plan does not know it"
        raise OllamakeError(
            f"num_ctx: auto for {quantization} of {plan['model']}: expected a type of the plan; {why}. Choose another type"
            " (quantizations), or set num_ctx to a number"
        )
    # The name of a GPU is free text, and a comment ends with its line.
    return planned["tokens"], f"by the plan, {' '.join(planned['reason'].split())}"


def _planned(
    row: Mapping[str, Any], memory: ContextMemory, asked: Asked, places: Places, block_count: int
) -> dict[str, Any]:
    context = memory.planned(asked.context)
    which = "what is asked (plan.context)"
    if context < asked.context:
        which = f"the length the model was trained for, as more is asked ({asked.context:,}, plan.context)"
    if places.deciding is None:
        return {"tokens": context, "reason": f"{which}; nothing is known of the memory (hardware)"}
    fit, budget = row["fits"][places.deciding], places.budgets[places.deciding]
    if fit["fits"] is None:
        unknown = memory.why_unknown(asked.kv_cache)
        return {"tokens": context, "reason": f"{which}; whether it fits {budget.name} is unknown ({unknown})"}
    shorter = fit["largest_context"][asked.kv_cache] or 0
    if not fit["fits"] and shorter >= _WORTH_IT:
        return {
            "tokens": shorter,
            "reason": f"the largest with which {row['type']} fits {budget.name} ({cache_words(asked)}), though"
            f" {context:,} are asked (plan.context)",
        }
    if not fit["fits"]:
        layers = layers_words(fit, block_count)
        reason = f"{which}; {row['type']} with it needs {gib(-fit['free_mib'])} more than {budget.name} has"
        return {"tokens": context, "reason": f"{reason}, {layers}" if layers else reason}
    largest = fit["largest_context"][asked.kv_cache]
    fits = f"{row['type']} fits {budget.name} with it ({cache_words(asked)})"
    if largest == memory.trained:
        return {"tokens": largest, "reason": f"the length the model was trained for; {fits}"}
    if largest == memory.longest(asked.kv_cache):
        return {"tokens": largest, "reason": f"the largest that was measured; {fits}"}
    return {
        "tokens": largest,
        "reason": f"the largest with which {row['type']} fits {budget.name} ({cache_words(asked)})",
    }
