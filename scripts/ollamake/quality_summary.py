"""All that was measured of a model's quantizations, as it stands in quality.json: figures, verdicts, what to take and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.quality_figures import Quality, part_of, plain, ppl_ratio, row_of, times, with_error
from ollamake.quality_recommendation import pareto_front, recommend
from ollamake.quality_rows import budget, check_same, checkpoint_rows, quality_rows
from ollamake.quality_verdict import verdict

Json = Mapping[str, Any]

_UNSURE = 0.2
"""Sampling error, as a share of a mean KL divergence, from which it is said."""
_APART = 0.01
"""Difference of two programs' perplexities of the same weights and text, as a share, from which it is said."""


def summarize(
    model: str,
    plan: Json,
    text: Json,
    reference: Json,
    base: Json | None,
    measured: Sequence[Json],
    records: Sequence[Json],
    speeds: Sequence[Json],
    spec: Json,
    overlap: Json | None = None,
    checkpoints: Sequence[Json] = (),
) -> dict[str, Any]:
    """Return the content of quality.json.

    ``spec``: ``limits`` (key of models.M.quality that is judged before registration -> number or None), ``on_fail``,
    ``registered`` (the types that are not only compared). ``overlap``: what the text shares with the one that was calibrated
    on. ``checkpoints``: what was measured of bitsandbytes checkpoints, whose rows stand by themselves: they are no GGUFs, so
    none is registered, judged or recommended. The others are the contents of the files of results/M. Raises OllamakeError if
    they do not belong together.
    """
    if base is not None:
        check_same("the measurement of the base", {"measured": "base"} | dict(base), None, reference)
    rows = quality_rows(measured, records, speeds, plan, reference, spec["registered"])
    front = pareto_front([(row["size"], row["kld_mean"]) for row in rows])
    for row, pareto in zip(rows, front, strict=True):
        row |= {"pareto": pareto, "verdict": verdict(row, spec["limits"], model, text["cut"])}
    quality: dict[str, Any] = {
        "model": model,
        "limits": dict(spec["limits"]),
        "on_fail": spec["on_fail"],
        "text": dict(text),
        "overlap": None if overlap is None else overlap["share"],
        "reference": dict(reference),
        "base": None if base is None else dict(base),
        "budget": budget(plan),
        "rows": rows,
        "checkpoints": checkpoint_rows(checkpoints, plan, reference),
        "planned": None if plan["recommendation"] is None else plan["recommendation"]["type"],
    }
    recommendation, reasons = recommend(quality)
    quality["recommendation"] = recommendation
    said = reasons if recommendation is None else [f"Recommended: {recommendation['sentence']}"]
    quality["sentences"] = [
        *training(quality),
        *said,
        *_doubts(quality),
        *_apart(quality),
        *text["warnings"],
        *([] if overlap is None else overlap["warnings"]),
    ]
    return quality


def training(quality: Quality) -> list[str]:
    """Return what training changed beside what quantizing loses, in sentences; none where the base was not measured."""
    base = quality["base"]
    if base is None:
        return []
    if "not_comparable" in base:
        return [f"What training changed is not known: {base['not_comparable'].rstrip('.')}."]
    changed = base["kld"]["mean"]
    sentences = [
        f"Training changed the model by a mean KLD of {with_error(changed['value'], changed['error'])} nats a token;"
        f" {_perplexities(*ppl_ratio(base, quality['reference']))}."
    ]
    recommendation = quality.get("recommendation", None)
    row = row_of(quality, recommendation["type"] if recommendation else quality["planned"])
    if row is None:
        row = next((row for row in reversed(quality["rows"]) if not row["compared_only"]), None)
    if row is not None:
        sentences.insert(0, _beside_training(row["type"], row["kld_mean"], row["kld_mean_error"], changed["value"]))
    return sentences


def _beside_training(kind: str, lost: float, error: float, changed: float) -> str:
    if lost <= error or changed <= 0:
        return f"Quantizing to {kind} changes the model by no more than the sampling error (mean KLD {with_error(lost, error)})."
    return (
        f"Quantizing to {kind} changes the model {part_of(lost, changed)} as training did (mean KLD {plain(lost)} against"
        f" {plain(changed)})."
    )


def _perplexities(ratio: float, error: float) -> str:
    figure = f"{plain(ratio)} times" if abs(ratio - 1) > 0.1 else f"{with_error(ratio, error)} times"
    text = f"on this text the base's perplexity is {figure} the fine-tune's"
    if abs(ratio - 1) <= error:
        return f"{text}, which is no difference within the sampling error"
    return text if ratio > 1 else f"{text}: the base expects this text more than the fine-tune does"


def _apart(quality: Quality) -> list[str]:
    """Return that transformers and llama.cpp disagree about the fine-tune itself, where they do."""
    reference = quality["reference"]
    for row in quality["checkpoints"]:
        transformers, llama_cpp = row["ppl_merged"], reference["ppl"]["value"]
        if row["chunks"] != reference["chunks"] or abs(transformers / llama_cpp - 1) > _APART:
            return [
                f"transformers and llama.cpp disagree about the fine-tune before quantization: perplexity {plain(transformers)}"
                f" of {row['chunks']} chunks and {plain(llama_cpp)} of {reference['chunks']}. They tokenize the text or compute"
                " the model differently; until that is understood, compare no row of a bitsandbytes checkpoint with one of a"
                " GGUF."
            ]
    return []


def _doubts(quality: Quality) -> list[str]:
    """Return what is beyond a limit, what keeps one by less than the sampling error, and which means are hardly known."""
    said = [
        f"{failure['sentence']}."
        for row in quality["rows"]
        if not row["compared_only"]
        for failure in row["verdict"]["failures"]
    ]
    said += [
        f"{sentence}." for row in quality["rows"] if not row["compared_only"] for sentence in row["verdict"]["close"]
    ]
    unsure = [
        row
        for row in quality["rows"]
        if not row["unquantized"] and row["kld_mean"] > 0 and row["kld_mean_error"] > _UNSURE * row["kld_mean"]
    ]
    if unsure:
        worst = max(unsure, key=lambda row: row["kld_mean_error"] / row["kld_mean"])
        share = worst["kld_mean_error"] / worst["kld_mean"]
        said.append(
            f"The text is short for these figures: the sampling error of the mean KLD is {plain(round(100 * share))} % for"
            f" {worst['type']}; {times(4)} the text would halve it."
        )
    return said
