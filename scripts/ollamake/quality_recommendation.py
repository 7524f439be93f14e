"""Which quantization to take by what was measured: the smallest that keeps the limits and fits, beside the plan's choice."""

from __future__ import annotations

from collections.abc import Sequence

from ollamake.plan_figures import gib, one_line
from ollamake.published_quality import quality_class
from ollamake.quality_figures import GOOD_KLD, Quality, Row, mean_kld, plain, row_of, size_words
from ollamake.quality_verdict import has_limits


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return of each (size, loss) whether no other is at least as good in both and better in one; equal ones share it."""
    front, least, size = [False] * len(points), float("inf"), float("-inf")
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        # By size, then by loss: whatever comes before is no larger.
        if points[index][1] < least or (points[index][1] == least and points[index][0] == size):
            front[index] = True
            size, least = points[index]
    return front


def recommend(quality: Quality) -> tuple[dict[str, str] | None, list[str]]:
    """Return ``type`` and ``sentence`` of the recommendation, or None; and sentences that say why there is none.

    ``quality``: the content of a quality.json but for ``recommendation`` and ``sentences``. With limits it is the smallest
    measured type that keeps them and fits the plan's budget; without, the smallest on the Pareto front that is "good" by the
    published bands, else the plan's choice. Where nothing is known of what fits, all types count as fitting, and the sentence
    says so.
    """
    limited = has_limits(quality["limits"])
    known = any(row["fits"] is not None for row in quality["rows"])
    fitting = [row for row in quality["rows"] if row["fits"] or not known]
    good = [row for row in fitting if _is_good(row, limited)]
    if good:
        row = min(good, key=lambda row: (row["size"], row["kld_mean"]))
        return {"type": row["type"], "sentence": _sentence(quality, row, limited, known)}, []
    if not limited:
        return _plans_choice(quality)
    return None, [_why_none(quality)]


def _is_good(row: Row, limited: bool) -> bool:
    if limited:
        return bool(row["verdict"]["passes"])
    return row["pareto"] and (row["unquantized"] or row["kld_mean"] < GOOD_KLD)


def _sentence(quality: Quality, row: Row, limited: bool, known: bool) -> str:
    kind = row["type"]
    what = "within the limits" if limited else f"good by the published bands (mean KLD below {GOOD_KLD:g})"
    place = "" if quality["budget"] is None else f" {one_line(quality['budget']['name'])}"
    fits = f" that fits{place}" if known else "; whether it fits is unknown"
    sentences = [
        f"{kind} ({size_words(row['size'])}, mean KLD {mean_kld(row)}) is the smallest measured type {what}{fits}"
        + (", as planned." if kind == quality["planned"] else ".")
    ]
    if kind != quality["planned"] and quality["planned"] is not None:
        sentences.append(_beside_the_plan(quality, row))
    if row["compared_only"]:
        sentences.append(
            f"It was measured for comparison only: add it to models.{quality['model']}.quantizations to register it."
        )
    return " ".join(sentences)


def _beside_the_plan(quality: Quality, row: Row) -> str:
    """Compare a type with the plan's choice: size and memory saved or spent, KL divergence given up or gained."""
    planned = quality["planned"]
    other = row_of(quality, planned)
    if other is None and planned == quality["reference"]["type"]:
        return (
            f"The plan's choice is the unquantized {planned} ({size_words(quality['reference']['gguf_size'])}):"
            f" {_saved(quality['reference']['gguf_size'] - row['size'], None)}, mean KLD {mean_kld(row)} given up, measured on"
            " this text."
        )
    if other is None:
        return (
            f"The plan's choice {planned} was not measured: add it to models.{quality['model']}.quality.compare to see it"
            " beside these."
        )
    memory = None
    if row["total_mib"] is not None and other["total_mib"] is not None:
        memory = other["total_mib"] - row["total_mib"]
    lost = row["kld_mean"] - other["kld_mean"]
    sentence = (
        f"Against the plan's choice {planned} ({size_words(other['size'])}, mean KLD {mean_kld(other)}):"
        f" {_saved(other['size'] - row['size'], memory)}, {plain(abs(lost))} nats a token"
        f" {'given up' if lost >= 0 else 'gained'}, both measured on this text."
    )
    failures = other["verdict"]["failures"]
    if failures:
        sentence += f" The plan's choice is beyond the limits. {failures[0]['sentence']}."
    return sentence


def _saved(size: int, mib: int | None) -> str:
    text = f"{size_words(abs(size))} of disk"
    if mib is None:
        return f"{text} {'saved' if size >= 0 else 'more'}"
    if (mib >= 0) == (size >= 0):
        return f"{text} and {gib(abs(mib))} GiB of memory {'saved' if size >= 0 else 'more'}"
    return f"{text} {'saved' if size >= 0 else 'more'}, {gib(abs(mib))} GiB of memory {'saved' if mib >= 0 else 'more'}"


def _plans_choice(quality: Quality) -> tuple[dict[str, str] | None, list[str]]:
    """Return the plan's choice, for want of a measured type that is good and fits."""
    planned = quality["planned"]
    none_good = f"None of the measured types that fit is good by the published bands (mean KLD below {GOOD_KLD:g})"
    if planned is None:
        return None, [f"{none_good}, and the plan recommends none: nothing is recommended. Measure larger types."]
    row = row_of(quality, planned)
    if row is None:
        known = "which was not measured on this text"
        if planned == quality["reference"]["type"]:
            known = "the unquantized fine-tune, of which nothing is lost"
    else:
        known = f"mean KLD {mean_kld(row)} on this text, {_class_words(row)}"
    return {"type": planned, "sentence": f"{none_good}, so it is the plan's choice: {planned} ({known})."}, []


def _class_words(row: Row) -> str:
    return f"in the published band “{quality_class(row['kld_mean'])}”"


def _why_none(quality: Quality) -> str:
    """Say why no measured type is recommended: which keep the limits but do not fit, and what else to do."""
    passing = [row["type"] for row in quality["rows"] if row["verdict"]["passes"]]
    place = "the budget" if quality["budget"] is None else one_line(quality["budget"]["name"])
    if passing:
        reasons = [f"{row['type']} {_against(row, place)}" for row in quality["rows"] if row["verdict"]["passes"]]
        return f"No measured type is recommended: {'; '.join(reasons)}. {what_helps(quality)}"
    return f"No measured type is within the limits. {what_helps(quality)}"


def _against(row: Row, place: str) -> str:
    return (
        f"is within the limits but is not known to fit {place}"
        if row["fits"] is None
        else (f"is within the limits but does not fit {place}")
    )


def what_helps(quality: Quality) -> str:
    """Say what would give a type within the limits: more bits, an importance matrix, other limits."""
    where = f"models.{quality['model']}"
    knobs = [f"types of more bits ({where}.quantizations, or {where}.quality.compare to measure them only)"]
    if not any(row["imatrix"] for row in quality["rows"]):
        knobs.append(f"an importance matrix from your own text ({where}.imatrix; none was used)")
    knobs.append(f"other limits ({where}.quality)")
    return f"What helps: {', '.join(knobs)}."
