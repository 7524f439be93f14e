"""The type that ``quantizations: auto`` takes: the one that the plan recommends."""

from __future__ import annotations

from pathlib import Path

from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record


def quantization_of_plan(file: Path) -> str:
    """Return the type that a plan.json recommends. Raises OllamakeError with the plan's own words if it recommends none."""
    plan = read_record(file)
    if plan["recommendation"] is None:
        raise OllamakeError(
            f"models.{plan['model']}.quantizations is auto, but {plan['no_recommendation'].rstrip('.')}."
            f" All types are in {file.with_suffix('.md')}; any of them can be named in `quantizations`."
        )
    chosen: str = plan["recommendation"]["type"]
    return chosen
