"""What llama-perplexity prints, as numbers: nothing rounded, nothing passed over.

Formats: tools/perplexity/perplexity.cpp of llama.cpp, perplexity() and kl_divergence(). All figures are printed with a fixed
number of decimals; all uncertainties are one standard error and take the tokens as independent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

SMALLEST_SAMPLE = 100
"""Scored tokens below which kl_divergence() prints no statistics."""

_NUMBER = r"-?(?:\d+\.\d+|nan|inf)"
_PERPLEXITY = re.compile(rf"\s*\[(\d+)\]({_NUMBER})")
_ROW = re.compile(
    rf"\s*(\d+)\s+({_NUMBER}) ±\s+({_NUMBER})\s+({_NUMBER}) ±\s+{_NUMBER}\s+({_NUMBER}) ±\s+({_NUMBER})"
    rf"\s+({_NUMBER}) ±\s+{_NUMBER} %\s+({_NUMBER}) ±\s+{_NUMBER} %\s*"
)
_ESTIMATE = re.compile(rf"Final estimate: PPL = ({_NUMBER}) \+/- ({_NUMBER})")
_VALUE = re.compile(rf"({_NUMBER})(?: ± +({_NUMBER}))?( ?%)?")

_PERCENTILES = {"99.9%": "p99_9", "99.0%": "p99", "95.0%": "p95", "90.0%": "p90", "75.0%": "p75", "25.0%": "p25",
                "10.0%": "p10", "5.0%": "p5", "1.0%": "p1", "0.1%": "p0_1"}  # fmt: skip
_EXTREMES = {"Maximum": "max", "Median": "median", "Minimum": "min"}
_ONLY_OF_DELTA_P = ("75.0%", "25.0%")
_LABELS: dict[str, tuple[str, ...]] = {
    "Mean PPL(Q)": ("ppl",),
    "Mean PPL(base)": ("ppl_reference",),
    "Cor(ln(PPL(Q)), ln(PPL(base)))": ("ppl_correlation",),
    "Mean ln(PPL(Q)/PPL(base))": ("ln_ppl_ratio",),
    "Mean PPL(Q)/PPL(base)": ("ppl_ratio",),
    "Mean PPL(Q)-PPL(base)": ("ppl_difference",),
    "Mean KLD": ("kld", "mean"),
    **{f"{label} KLD": ("kld", key) for label, key in (_PERCENTILES | _EXTREMES).items() if label not in _ONLY_OF_DELTA_P},
    "Mean Δp": ("delta_p", "mean"),
    **{f"{label} Δp": ("delta_p", key) for label, key in (_PERCENTILES | _EXTREMES).items()},
    "RMS Δp": ("delta_p", "rms"),
    "Same top p": ("same_top",),
}  # fmt: skip
"""Label in front of the colon, blanks taken together -> keys of the figure."""

_WITH_ERROR = frozenset(
    {("ppl",), ("ppl_reference",), ("ln_ppl_ratio",), ("ppl_ratio",), ("ppl_difference",), ("kld", "mean"),
     ("delta_p", "mean"), ("delta_p", "rms"), ("same_top",)}
)  # fmt: skip
_IN_PERCENT = frozenset(keys for keys in _LABELS.values() if keys[0] in ("ppl_correlation", "delta_p", "same_top"))
_DIFFERENCES = frozenset({("ln_ppl_ratio",), ("ppl_ratio",), ("ppl_difference",), ("delta_p", "rms")})
"""Figures whose uncertainty is the root of a difference of variances, or is divided by a figure that may be 0. If the two models
are equal to the last bits, it comes out as nan where it is 0."""


@dataclass(frozen=True)
class ChunkFigures:
    """What is printed after a chunk, over all chunks so far. ``kld`` in nats a token; None in a run without a reference."""

    chunk: int
    ppl: float
    kld: float | None
    finite: bool


def scored_tokens(context: int, chunks: int) -> int:
    """Return how many tokens are scored: of each chunk the second half but its first, which has none before it there."""
    return chunks * (context - 1 - context // 2)


def chunks_needed(context: int) -> int:
    """Return how many chunks of ``context`` tokens make enough scored tokens for statistics."""
    return math.ceil(SMALLEST_SAMPLE / scored_tokens(context, 1))


def chunk_figures(piece: str) -> ChunkFigures | None:
    """Return the figures of a chunk from the text between two commas or line ends; None if it is something else."""
    if found := _PERPLEXITY.fullmatch(piece):
        ppl = float(found[2])
        return ChunkFigures(int(found[1]), ppl, None, math.isfinite(ppl))
    if found := _ROW.fullmatch(piece):
        numbers = [float(text) for text in found.groups()[1:]]
        return ChunkFigures(int(found[1]), numbers[0], numbers[3], all(map(math.isfinite, numbers)))
    return None


def final_estimate(stderr: str) -> dict[str, float] | None:
    """Return {value, error} of the perplexity that a run without a reference ends with, or None if it does not."""
    found = _ESTIMATE.search(stderr)
    return {"value": float(found[1]), "error": float(found[2])} if found else None


def parse_statistics(stdout: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return (figures, the lines they stand in, labels of figures that are missing) of the statistics of a comparison.

    Perplexities are of the second half of each chunk; ``kld`` is in nats a token, ``ppl_correlation``, ``delta_p`` and
    ``same_top`` in percent. A figure that is printed twice or in another form counts as missing.
    """
    found: dict[tuple[str, ...], Any] = {}
    printed, twice = [], set()
    for line in stdout.splitlines():
        label, _, text = line.rpartition(":")
        keys = _LABELS.get(" ".join(label.split()))
        figure = None if keys is None else _figure(keys, text.strip())
        if keys is None or figure is None:
            continue
        if keys in found:
            twice.add(keys)
        found[keys] = figure
        printed.append(line)
    missing = [label for label, keys in _LABELS.items() if keys not in found or keys in twice]
    figures: dict[str, Any] = {}
    for keys, figure in found.items():
        place = figures
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = figure
    return figures, printed, missing


def nonfinite_figures(figures: dict[str, Any]) -> list[str]:
    """Return the names of the figures that are no finite numbers, as "kld.max"."""
    names = []
    for name, value in figures.items():
        if isinstance(value, dict):
            names += [f"{name}.{inner}" for inner in nonfinite_figures(value)]
        elif not math.isfinite(value):
            names.append(name)
    return names


def _figure(keys: tuple[str, ...], text: str) -> float | dict[str, float] | None:
    found = _VALUE.fullmatch(text)
    if found is None or (found[2] is not None) != (keys in _WITH_ERROR) or bool(found[3]) != (keys in _IN_PERCENT):
        return None
    value = float(found[1])
    if found[2] is None:
        return value
    error = float(found[2])
    if math.isnan(error) and math.isfinite(value) and keys in _DIFFERENCES:
        error = 0.0
    return {"value": value, "error": error}
