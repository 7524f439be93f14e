"""The measured quantizations of a model as rows of one table: size, loss, speed, whether they fit the plan's budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.plan_figures import Plan, deciding_index, sized_rows
from ollamake.quality_figures import ppl_ratio

Json = Mapping[str, Any]


def quality_rows(
    measured: Sequence[Json],
    records: Sequence[Json],
    speeds: Sequence[Json],
    plan: Plan,
    reference: Json,
    registered: Collection[str],
) -> list[dict[str, Any]]:
    """Return a row for each measurement, largest file first, without ``pareto`` and ``verdict``.

    ``measured``: contents of results/M/quality/TYPE.json; ``records``: of the GGUFs' records; ``speeds``: of TYPE.speed.json,
    as many as there are; ``registered``: the types that are not measured for comparison only.
    Shares are 0 to 1, sizes bytes, memory MiB. Raises OllamakeError if the files do not belong together.
    """
    by_type = {record["type"]: record for record in records}
    speed_of = {speed["type"]: speed for speed in speeds}
    rows = []
    for one in measured:
        kind = one["measured"]
        record = by_type.get(kind)
        if record is None:
            raise OllamakeError(
                f"{kind} was measured, but there is no record of its GGUF among {', '.join(by_type) or 'none'}; give it to"
                " --records."
            )
        check_same(f"the measurement of {kind}", one, record, reference)
        speed = speed_of.get(kind)
        if speed is not None and speed["gguf_sha256"] != record["sha256"]:
            raise OllamakeError(
                f"the speed of {kind} was measured with another GGUF (sha256 {speed['gguf_sha256'][:12]}, not"
                f" {record['sha256'][:12]}); delete its {kind}.speed.json and build again."
            )
        rows.append(
            _row(one, record, speed, reference, kind not in registered) | _memory(plan, kind, "imatrix" in record)
        )
    return sorted(rows, key=lambda row: (-row["size"], row["type"]))


def checkpoint_rows(measured: Sequence[Json], plan: Plan, reference: Json) -> list[dict[str, Any]]:
    """Return a row for each bitsandbytes checkpoint, as quality_rows has them and with ``verdict``, largest first.

    ``measured``: contents of results/M/quality/nf4.json and int8.json. ``ppl_merged`` is the perplexity of the merged weights by
    transformers, to which their ratio is. Raises OllamakeError if one was measured on another text.
    """
    index = deciding_index(plan)
    fits = {row["name"].lower(): row["fits"][index] for row in plan["transformers"]} if index is not None else {}
    rows = []
    for one in measured:
        kind = one["measured"]
        check_same(
            f"the measurement of {kind}", dict(one) | {"reference_sha256": reference["gguf_sha256"]}, None, reference
        )
        row = _row(one, dict(one) | {"type": kind}, None, {"ppl": one["ppl_reference"], "type": None}, True)
        row |= {"total_mib": None, "fits": fits.get(kind), "ppl_merged": one["ppl_reference"]["value"]}
        verdict = {"passes": None, "failures": [], "close": []}
        rows.append(row | {"pareto": False, "verdict": verdict, "chunks": one["chunks"], "versions": one["versions"]})
    return sorted(rows, key=lambda row: -row["size"])


def check_same(what: str, one: Json, record: Json | None, reference: Json) -> None:
    """Raise OllamakeError if a measurement is of another GGUF, against another reference, or on another text."""
    pairs = [
        ("reference_sha256", one["reference_sha256"], reference["gguf_sha256"], "another reference"),
        ("text_sha256", one["text_sha256"], reference["text_sha256"], "another text"),
    ]
    if record is not None:
        pairs.insert(0, ("gguf_sha256", one["gguf_sha256"], record["sha256"], "another GGUF"))
    for key, found, expected, name in pairs:
        if found != expected:
            raise OllamakeError(
                f"{what} is of {name} ({key} {found[:12]}, not {expected[:12]}); delete results/*/quality/{one['measured']}.json"
                " and build again."
            )


def budget(plan: Plan) -> dict[str, Any] | None:
    """Return the budget that decides: ``name``, ``usable_mib``, ``largest_file`` (bytes of the largest GGUF that fits).

    ``largest_file`` lies between the largest type that fits and the smallest that does not, where the memory that is left
    would be 0; beyond all types it follows the nearest. None where it is unknown.
    """
    index = deciding_index(plan)
    if index is None:
        return None
    free = sorted(
        (row["bytes"], row["fits"][index]["free_mib"])
        for row in sized_rows(plan)
        if row["fits"][index]["free_mib"] is not None
    )
    place = plan["budgets"][index]
    return {"name": place["name"], "usable_mib": place["usable_mib"], "largest_file": _largest_file(free)}


def _largest_file(free: Sequence[tuple[int, int]]) -> int | None:
    """Return the size at which no memory is left, from (bytes, MiB left) by size."""
    if not free:
        return None
    fitting = [one for one in free if one[1] >= 0]
    lacking = [one for one in free if one[1] < 0]
    if not fitting or not lacking or lacking[0][0] <= fitting[-1][0]:
        size, left = min(free, key=lambda one: abs(one[1]))
        return max(0, size + (left << 20))
    (below, left), (above, lacks) = fitting[-1], lacking[0]
    return round(below + (above - below) * left / (left - lacks))


def _row(one: Json, record: Json, speed: Json | None, reference: Json, compared_only: bool) -> dict[str, Any]:
    kld = one["kld"]
    ratio, ratio_error = ppl_ratio(one, reference)
    return {
        "type": one["measured"],
        "size": record["size"],
        "bits_per_weight": record["bits_per_weight"],
        "compared_only": compared_only,
        "imatrix": "imatrix" in record,
        "unquantized": record["type"] == reference["type"],
        "kld_mean": kld["mean"]["value"],
        "kld_mean_error": kld["mean"]["error"],
        "kld_median": kld["median"],
        "kld_p99": kld["p99"],
        "kld_max": kld["max"],
        "ppl": one["ppl"]["value"],
        # Printed perplexities have four decimals at least; more of the ratio would be noise.
        "ppl_ratio": round(ratio, 6),
        "ppl_ratio_error": round(ratio_error, 6),
        # Printed per cent have three decimals: rounded, the share is the number that a limit of the same decimals is.
        "same_top": round(one["same_top"]["value"] / 100, 8),
        "same_top_error": round(one["same_top"]["error"] / 100, 8),
        "rms_delta_p": round(one["delta_p"]["rms"]["value"] / 100, 8),
        "prompt_per_second": None if speed is None else speed["prompt"]["per_second"],
        "generation_per_second": None if speed is None else speed["generation"]["per_second"],
    }


def _memory(plan: Plan, kind: str, imatrix: bool) -> dict[str, Any]:
    """Return ``total_mib`` and ``fits`` of a type on the budget that decides, None where they are unknown."""
    index = deciding_index(plan)
    rows = [row for row in (*plan["rows"], *plan["with_imatrix"]) if row["type"] == kind and "refused" not in row]
    if index is None or not rows:
        return {"total_mib": None, "fits": None}
    fit = min(rows, key=lambda row: row["imatrix"] != imatrix)["fits"][index]
    return {"total_mib": fit["total_mib"], "fits": fit["fits"]}
