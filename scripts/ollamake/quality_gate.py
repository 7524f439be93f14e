"""The gate between a quantization and its registration: what is said where a quantization is beyond the limits."""

from __future__ import annotations

from typing import Any

from ollamake.errors import OllamakeError
from ollamake.plan_figures import one_line
from ollamake.quality_figures import Quality, Row, row_of, size_words
from ollamake.quality_recommendation import what_helps


def judge(quality: Quality, kind: str) -> dict[str, Any]:
    """Return the verdict file of a type: ``type``, ``passes`` (None without limits), ``failures``, ``on_fail``.

    Raises OllamakeError if quality.json does not know the type.
    """
    row = row_of(quality, kind)
    if row is None:
        measured = ", ".join(row["type"] for row in quality["rows"]) or "none"
        raise OllamakeError(
            f"results/{quality['model']}/quality.json has no measurement of {kind} (measured: {measured}); build it again."
        )
    return {
        "type": kind,
        "passes": row["verdict"]["passes"],
        "failures": row["verdict"]["failures"],
        "on_fail": quality["on_fail"],
    }


def refusal(quality: Quality, verdict: dict[str, Any]) -> str:
    """Return what to say of a type that is beyond a limit: by how much, what stays, what would pass, where to look."""
    model, kind = quality["model"], verdict["type"]
    stays = f"The GGUF stays at results/{model}/gguf/{model}.{kind}.gguf"
    if verdict["on_fail"] == "stop":
        stays += f"; it is not registered now. To register it all the same: models.{model}.quality.on_fail: warn."
    else:
        stays += f"; it is registered, because models.{model}.quality.on_fail is warn."
    lines = [f"{failure['sentence']}." for failure in verdict["failures"]]
    return "\n".join([*lines, stays, _would_pass(quality), f"The picture is results/{model}/quality.svg."])


def _would_pass(quality: Quality) -> str:
    passing = sorted((row for row in quality["rows"] if row["verdict"]["passes"]), key=lambda row: row["size"])
    if not passing:
        return f"None of the measured types is within the limits. {what_helps(quality)}"
    return f"Measured and within the limits, smallest first: {'; '.join(_described(quality, row) for row in passing)}."


def _described(quality: Quality, row: Row) -> str:
    place = "" if quality["budget"] is None else f" {one_line(quality['budget']['name'])}"
    fits = {True: f"fits{place}", False: f"does not fit{place}", None: "whether it fits is unknown"}[row["fits"]]
    only = ", measured for comparison only" if row["compared_only"] else ""
    return f"{row['type']} ({size_words(row['size'])}, {fits}{only})"
