"""How measured quality is written: divergences, ratios and shares with their sampling error, the same everywhere.

``quality`` is the content of a quality.json (:mod:`ollamake.quality_summary`). KL divergences are in nats a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ollamake.plan_figures import gb

Quality = Mapping[str, Any]
Row = Mapping[str, Any]

GOOD_KLD = 0.02
"""Mean KL divergence below which published_quality.quality_class speaks of "good" or better."""


def ppl_ratio(one: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """Return the perplexity of what was measured relative to the fine-tune's, and its error.

    Both perplexities are of the models' own logits. The ratio that llama-perplexity prints is to a perplexity by what it has
    stored of the fine-tune: log-probabilities in a window of 16 nats below the likeliest token (log_softmax in
    tools/perplexity/perplexity.cpp), by which it is too small on a text that has less likely ones. The error is that of
    the printed ratio, in proportion: the two read the same tokens.
    """
    ratio = one["ppl"]["value"] / reference["ppl"]["value"]
    return ratio, one["ppl_ratio"]["error"] * ratio / one["ppl_ratio"]["value"]


def size_words(size: float) -> str:
    """Return a size in bytes in words: 19.85 GB, 2.40 MB."""
    return f"{gb(round(size))} GB" if abs(size) >= 5e7 else f"{size / 1e6:.2f} MB"


def plain(value: float) -> str:
    """Return a figure with three digits and without trailing zeros, never as a power of ten above 1e-5."""
    if value == 0 or not math.isfinite(value):
        # llama-perplexity prints -0.000000 where two files differ by less than its rounding.
        return f"{value + 0.0:g}"
    decimals = min(max(0, 2 - math.floor(math.log10(abs(value)))), 6)
    text = f"{value:,.{decimals}f}" if abs(value) >= 1e-5 else f"{value:.1e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def with_error(value: float, error: float | None) -> str:
    """Return a figure with its error (1 sigma): 0.03127 ± 0.00024. The error has two digits, at most six decimals.

    An error of 0 (nothing differs at all) or None (not known) is left out.
    """
    if not error or not math.isfinite(value + error):
        return plain(value)
    decimals = min(max(0, 1 - math.floor(math.log10(error))), 6)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def percent(share: float, error: float | None = None) -> str:
    """Return a share of 0 to 1 as per cent, the error with it: 91.90 ± 0.21 %."""
    if error is None:
        return f"{plain(round(100 * share, 6))} %"
    return f"{with_error(100 * share, 100 * error)} %"


def apart(found: float, allowed: float) -> tuple[str, str]:
    """Return two figures with as many digits as it takes to see which is larger, at least those of ``plain``."""
    texts = (plain(found), f"{allowed:.12g}")
    if texts[0] != texts[1] and (float(texts[0].replace(",", "")) > allowed) == (found > allowed):
        return texts
    return (repr(found), repr(allowed))


def tick(value: float) -> str:
    """Return the number at a tick of an axis, in full."""
    return f"{value:.10g}"


def times(factor: float) -> str:
    """Return a factor in words: 1.56 times, 40 times."""
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.3g} times"


def part_of(part: float, whole: float) -> str:
    """Return how large a part is of a whole that is larger, as 1/40, or how many times as large."""
    ratio = whole / part
    if ratio < 1.05:
        return "as much" if ratio > 0.95 else f"{times(1 / ratio)} as much"
    return f"1/{ratio:,.0f} as much" if ratio >= 9.5 else f"1/{ratio:.2g} as much"


def row_of(quality: Quality, kind: str | None) -> Row | None:
    """Return the row of a type, None if it was not measured."""
    return next((row for row in quality["rows"] if row["type"] == kind), None)


def mean_kld(row: Row) -> str:
    """Return the mean KL divergence of a row with its error."""
    return with_error(row["kld_mean"], row["kld_mean_error"])
