"""What the plan has against the types that the user named: said at the end of a build, which it does not stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.plan_recommendation import gib, layers_words


def chosen_warnings(plan: Mapping[str, Any], types: Sequence[str]) -> list[str]:
    """Return a sentence for each of ``types`` that does not fit where the model is to run, by a parsed plan.json."""
    deciding = next((number for number, place in enumerate(plan["budgets"]) if place["deciding"]), None)
    rows = {row["type"]: row for row in plan["rows"]}
    warnings = []
    for kind in types:
        row = rows[kind]
        if deciding is None or "refused" in row or row["fits"][deciding]["fits"] is not False:
            continue
        fit, place = row["fits"][deciding], plan["budgets"][deciding]
        layers = layers_words(fit, plan["block_count"])
        lacking = f"{kind} does not fit {place['name']}, {gib(-fit['free_mib'])} are lacking"
        warnings.append(f"{lacking}; {layers}" if layers else lacking)
    return warnings
