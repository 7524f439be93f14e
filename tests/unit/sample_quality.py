"""What is measured of a model's quantizations, by the formats of results/M/quality: Llama-3-8B's published figures.

KLD, perplexity ratio, RMS Δp and sizes are those of llama.cpp's tools/perplexity/README.md (8.03 billion parameters,
Wikitext-2, without an importance matrix); percentiles and speeds are in proportion to them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sample_plan import sample_plan

from ollamake.quality_summary import summarize

PARAMETERS = 8_030_261_248
REFERENCE_SHA, TEXT_SHA = "f" * 64, "e" * 64
GIB = 2**30

FIGURES: dict[str, tuple[float, float, float, float, float, float, float, float]] = {
    "F16": (14.97, 0.0, 0.0, 1.0, 0.0, 0.0, 100.0, 29.17),
    "Q8_0": (7.96, 0.001355, 0.000006, 1.000425, 0.000161, 1.198, 97.674, 50.93),
    "Q6_K": (6.14, 0.005452, 0.000035, 1.003490, 0.000296, 2.295, 96.031, 58.67),
    "Q5_K_M": (5.33, 0.010762, 0.000079, 1.009142, 0.000417, 3.173, 94.6, 67.23),
    "Q5_K_S": (5.21, 0.016595, 0.000122, 1.016844, 0.000533, 3.926, 93.9, 69.17),
    "Q4_K_M": (4.58, 0.031273, 0.000238, 1.028160, 0.000737, 5.519, 91.901, 71.93),
    "Q4_K_S": (4.37, 0.043136, 0.000314, 1.043151, 0.000897, 6.608, 90.3, 76.71),
    "IQ4_XS": (4.14, 0.036334, 0.000284, 1.036604, 0.000826, 6.042, 91.2, 77.51),
    "Q3_K_L": (4.03, 0.087176, 0.000614, 1.089258, 0.001452, 9.355, 87.0, 69.38),
    "Q3_K_M": (3.74, 0.101913, 0.000677, 1.105412, 0.001589, 10.203, 85.9, 71.68),
    "Q3_K_S": (3.41, 0.228217, 0.001079, 1.261912, 0.002768, 15.5, 79.0, 71.02),
    "Q2_K": (2.96, 0.445132, 0.001835, 1.564849, 0.005234, 21.421, 71.138, 79.85),
}
"""GiB, mean KLD, its error, PPL ratio, its error, RMS Δp in points, same top in per cent, generation tokens/s."""

NO_LIMITS: dict[str, float | None] = dict.fromkeys(("max_kld_mean", "max_kld_p99", "max_ppl_ratio", "min_top1"))


def measurement(kind: str, figures: Sequence[float] | None = None, **changes: Any) -> dict[str, Any]:
    """Return results/M/quality/TYPE.json."""
    _, kld, kld_error, ratio, ratio_error, rms, top, _ = FIGURES[kind] if figures is None else figures
    shares = {"max": 90.0, "p99_9": 27.0, "p99": 10.0, "p95": 4.0, "p90": 2.2, "median": 0.3, "p10": 0.01, "p5": 0.002,
              "p1": 1e-4, "p0_1": 0.0, "min": 0.0}  # fmt: skip
    delta = {"max": 8.0, "p99_9": 5.0, "p99": 2.8, "p95": 1.5, "p90": 0.9, "p75": 0.2, "median": -0.001, "p25": -0.3,
             "p10": -1.1, "p5": -1.8, "p1": -3.4, "p0_1": -6.0, "min": -11.0}  # fmt: skip
    return {
        "measured": kind,
        "gguf_sha256": sha(kind),
        "gguf_size": size_of(kind),
        "reference_sha256": REFERENCE_SHA,
        "text_sha256": TEXT_SHA,
        "context": 512,
        "chunks": 100,
        "tokens": 25500,
        "ppl": {"value": 6.231634 * ratio, "error": 0.0379},
        "ppl_reference": {"value": 6.231634, "error": 0.037833},
        "ppl_ratio": {"value": ratio, "error": ratio_error},
        "ln_ppl_ratio": {"value": ratio - 1, "error": ratio_error},
        "ppl_difference": {"value": 6.231634 * (ratio - 1), "error": 0.004},
        "ppl_correlation": 99.5,
        "kld": {"mean": {"value": kld, "error": kld_error}, **{key: kld * share for key, share in shares.items()}},
        "delta_p": {
            "mean": {"value": -rms / 20, "error": 0.01},
            **{key: rms * share for key, share in delta.items()},
            "rms": {"value": rms, "error": rms / 100},
        },
        "same_top": {"value": top, "error": 0.07},
        "printed": [],
    } | changes


def sha(kind: str) -> str:
    return REFERENCE_SHA if kind == "unquantized" else kind.encode().hex().ljust(64, "0")


def size_of(kind: str) -> int:
    return round(FIGURES[kind][0] * GIB) if kind in FIGURES else round(FIGURES["F16"][0] * GIB)


def record(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the record of a GGUF."""
    return {
        "file": f"m.{kind}.gguf",
        "type": kind,
        "size": size_of(kind),
        "sha256": sha(kind),
        "source_sha256": REFERENCE_SHA,
        "parameters": PARAMETERS,
        "bits_per_weight": round(size_of(kind) * 8 / PARAMETERS, 3),
    } | changes


def speed(kind: str, **changes: Any) -> dict[str, Any]:
    """Return results/M/quality/TYPE.speed.json."""
    return {
        "type": kind,
        "gguf_sha256": sha(kind),
        "prompt": {"tokens": 512, "per_second": 821.8, "stddev": 3.1},
        "generation": {"tokens": 64, "per_second": FIGURES[kind][7], "stddev": 0.3},
    } | changes


def text_record(**changes: Any) -> dict[str, Any]:
    """Return results/M/quality/evaluation.json."""
    return {
        "purpose": "evaluation",
        "sources": [
            {"file": "config/texts/handbook.txt", "kind": "text", "sha256": "a" * 64, "units": 1},
            {"file": "config/texts/chats.jsonl", "kind": "chat", "sha256": "b" * 64, "units": 212},
        ],
        "context": 512,
        "tokens": 64211,
        "chunks": 100,
        "cut": True,
        "parse_special": True,
        "unknown_tokens": 0,
        "sha256": TEXT_SHA,
        "warnings": [],
    } | changes


def reference_record(**changes: Any) -> dict[str, Any]:
    """Return results/M/quality/reference.json."""
    return {
        "type": "F16",
        "ppl": {"value": 6.231634, "error": 0.037833},
        "chunks": 100,
        "context": 512,
        "tokens": 25500,
        "gguf_sha256": REFERENCE_SHA,
        "gguf_size": size_of("F16"),
        "text_sha256": TEXT_SHA,
        "vocabulary": 128256,
        "logits_bytes": 6_540_000_000,
        "piped": False,
    } | changes


def base_measurement(kld: float = 1.24, ratio: float = 3.2, **changes: Any) -> dict[str, Any]:
    """Return results/M/quality/base.json."""
    return measurement("base", (0, kld, 0.011, ratio, 0.02, 31.0, 58.0, 0), **changes)


def fitting_plan(
    types: Collection[str] = tuple(FIGURES), usable_mib: int = 8192, planned: str | None = "Q6_K"
) -> dict[str, Any]:
    """Return a plan of the 8B model of FIGURES, on one GPU where ``usable_mib`` can be used: weights + 1,500 MiB each."""
    plan = sample_plan(gpus=[("RTX 3080 10GB", 10.0)])
    index = next(index for index, place in enumerate(plan["budgets"]) if place["deciding"])
    plan["budgets"][index]["usable_mib"] = usable_mib
    rows = [row for row in plan["rows"] if row["type"] in types and "refused" not in row]
    for row in rows:
        total = (size_of(row["type"]) >> 20) + 1500
        row["bytes"] = size_of(row["type"])
        row["fits"][index] |= {"total_mib": total, "free_mib": usable_mib - total, "fits": total <= usable_mib}
    plan["rows"] = rows
    plan["recommendation"] = (
        None if planned is None else {"type": planned, "reason": "it fits", "up": None, "down": None}
    )
    return plan


def sample_quality(
    types: Sequence[str] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K"),
    limits: Mapping[str, float | None] | None = None,
    model: str = "m",
    on_fail: str = "stop",
    compare: Sequence[str] = (),
    speeds: bool = True,
    base: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    overlap: float | None = None,
    imatrix: Collection[str] = (),
    measured: Mapping[str, Mapping[str, Any]] | None = None,
    **plan_options: Any,
) -> dict[str, Any]:
    """Return a quality.json as ollamake.quality_summary makes it; ``measured``: measurements instead of the sample's."""
    matrix = {"imatrix": {"sha256": "c" * 64, "chunks": 200}}
    return summarize(
        model,
        fitting_plan(**plan_options) if plan is None else plan,
        text_record() if text is None else text,
        reference_record(),
        base,
        [(measured or {}).get(kind) or measurement(kind) for kind in types],
        [record(kind, **(matrix if kind in imatrix else {})) for kind in types],
        [speed(kind) for kind in types] if speeds else [],
        {
            "limits": NO_LIMITS | dict(limits or {}),
            "on_fail": on_fail,
            "registered": [kind for kind in types if kind not in compare],
        },
        None if overlap is None else {"share": overlap, "warnings": []},
    )
