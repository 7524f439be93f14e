"""The verdict on the answers of registered models: what is said where a quantization answers too few questions rightly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollamake.quality_figures import percent
from ollamake.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED

Comparison = Mapping[str, Any]


def judge(comparison: Comparison) -> dict[str, Any]:
    """Return the verdict file of the content of an answers.json.

    ``passes``: whether no quantization is below the limit; ``failures``: a sentence for each that is; ``warnings``: the same
    sentences where they do not stop the build (``on_fail``: `warn`).
    """
    failures = [f"{failure['sentence']}." for failure in comparison["failures"]]
    return {
        **{key: comparison[key] for key in ("model", "limit_key", "min_score", "on_fail")},
        "passes": not failures,
        "failures": failures,
        "warnings": failures if comparison["on_fail"] == "warn" else [],
    }


def refusal(comparison: Comparison) -> str:
    """Return what to say of too low scores: by how much, what would pass, what stays, wrong answers, what to do."""
    model = comparison["model"]
    lines = [f"{failure['sentence']}." for failure in comparison["failures"]]
    lines += [_would_pass(comparison), _stays(comparison), *_wrong_answers(comparison), _what_helps(comparison)]
    lines.append(f"All answers: results/{model}/answers.md and results/{model}/ollama/*/answers.{model}.json.")
    return "\n".join(lines)


def smallest_that_passes(comparison: Comparison) -> str | None:
    """Return the quantization of the fewest bits a weight that answers enough, None if none does."""
    passing = [label for label, score in comparison["scores"].items() if score["passes"]]
    return min(passing, key=lambda label: QUANTIZATION_TYPES[label].bits_per_weight, default=None)


def _would_pass(comparison: Comparison) -> str:
    smallest = smallest_that_passes(comparison)
    if smallest is None:
        return "None of the quantizations that were asked answers enough."
    return (
        f"The smallest that answers enough of those that were asked: {smallest}"
        f" ({percent(comparison['scores'][smallest]['score'])})."
    )


def _stays(comparison: Comparison) -> str:
    """Say that what fails is registered all the same, and how to be rid of it."""
    names = " ".join(comparison["scores"][failure["label"]]["name"] for failure in comparison["failures"])
    return (
        f"All stay registered. To remove what fails: name other types in models.{comparison['model']}.quantizations (else the"
        f" next run registers it again), then `ollama rm {names}`."
    )


def _wrong_answers(comparison: Comparison) -> list[str]:
    """Return the first wrong answers of the quantization that answers least."""
    scores = comparison["scores"]
    worst = min(comparison["failures"], key=lambda failure: scores[failure["label"]]["score"])
    lines = [f"Wrong answers of {worst['label']}:"]
    for one in worst["wrong"]:
        lines += [f"  {one['question']!r}", f"    expected {one['expect']}, answered {one['answer']!r}"]
    return lines


def _what_helps(comparison: Comparison) -> str:
    """Say what to do: whether larger types would help is what the fine-tune before quantization tells."""
    where, key, least = f"models.{comparison['model']}", comparison["limit_key"], comparison["min_score"]
    unquantized = next(
        (score for label, score in comparison["scores"].items() if label == "fine-tune" or label in UNQUANTIZED), None
    )
    knobs = [f"a lower {key}"]
    if comparison["on_fail"] == "stop" and key == f"{where}.quality.min_answers":
        knobs.append(f"{where}.quality.on_fail: warn, with which the build goes on")
    elif comparison["on_fail"] == "stop":
        knobs.append(
            f"{where}.quality: {{min_answers: {least:g}, on_fail: warn}} in its place, with which the build goes on"
        )
    if unquantized is None:
        larger = f"a larger type, if it is quantizing that loses answers ({where}.answers.compare: [unquantized] tells)"
    elif unquantized["score"] >= least:
        larger = f"a larger type: before quantization {percent(unquantized['score'])} are right"
    else:
        larger = (
            f"other training, system prompt or questions: before quantization {percent(unquantized['score'])} are right, too"
            " few as well"
        )
    return f"What helps: {'; '.join([larger, *knobs])}."
