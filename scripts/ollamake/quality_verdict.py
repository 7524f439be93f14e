"""Whether a measured quantization keeps the limits of quality, and by how much it is beyond those it does not keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ollamake.quality_figures import Row, apart, percent, plain, times, with_error


@dataclass(frozen=True)
class Limit:
    """One limit of ``models.M.quality``: its key, the figure of a row it is about, that figure's error if it has one.

    ``least``: the figure must not be lower; otherwise it must not be higher. ``says``: what is measured, ``unit``: of what.
    ``room``: how far a figure or limit is from no loss at all, so that the quotient of two says how many times too much.
    """

    key: str
    figure: str
    error: str | None
    says: str
    unit: str
    least: bool
    room: Callable[[float], float]
    room_words: str = "the limit"


LIMITS = (
    Limit("max_kld_mean", "kld_mean", "kld_mean_error", "mean KL divergence", " nats a token", False, lambda x: x),
    Limit("max_kld_p99", "kld_p99", None, "99 % percentile of the KL divergence", " nats a token", False, lambda x: x),
    Limit(
        "max_ppl_ratio",
        "ppl_ratio",
        "ppl_ratio_error",
        "perplexity",
        " times the fine-tune's",
        False,
        lambda x: x - 1,
        "the rise that is allowed",
    ),
    Limit(
        "min_top1",
        "same_top",
        "same_top_error",
        "same likeliest token for",
        " of tokens",
        True,
        lambda x: 1 - x,
        "as many other tokens as allowed",
    ),
)
"""The limits that are judged before registration; min_answers is judged after it, by check_answers."""


def verdict(row: Row, limits: Mapping[str, float | None], model: str, cut: bool = False) -> dict[str, Any]:
    """Return ``passes`` (None where there is no limit), ``failures`` and ``close`` of a row of quality.json.

    A limit is kept if the figure is at most (min_top1: at least) the limit, whatever the sampling error; a NaN keeps none.
    ``failures``: ``limit``, ``allowed``, ``found``, ``sentence`` of each limit that is not kept. ``close``: a sentence for each
    that is kept by no more than one sampling error. ``cut``: there is more text than was measured. The unquantized
    fine-tune passes: what its figures differ from no loss is the rounding of the stored logarithms of probabilities.
    """
    set_limits = [limit for limit in LIMITS if limits.get(limit.key) is not None]
    if not set_limits:
        return {"passes": None, "failures": [], "close": []}
    failures, close = [], []
    for limit in [] if row["unquantized"] else set_limits:
        allowed, found = limits[limit.key], row[limit.figure]
        error = row[limit.error] if limit.error else None
        kept = found >= allowed if limit.least else found <= allowed
        near = error is not None and abs(found - allowed) <= error
        doubt = f"; within the sampling error: {_more(model, cut)} would tell" if near else ""
        where = f"models.{model}.quality.{limit.key} {'asks for' if limit.least else 'allows'}"
        if not kept:
            sentence = (
                f"{row['type']}: {_found(limit, found, allowed, error)}; {where} {_allowed(limit, found, allowed)}:"
                f" {_by_how_much(limit, found, allowed)}{doubt}"
            )
            failures.append({"limit": limit.key, "allowed": allowed, "found": found, "sentence": sentence})
        elif near:
            close.append(
                f"{row['type']}: {_found(limit, found, allowed, error)}; {where} {_allowed(limit, found, allowed)}; kept{doubt}"
            )
    return {"passes": not failures, "failures": failures, "close": close}


def has_limits(limits: Mapping[str, float | None]) -> bool:
    """Return whether a limit is set that is judged before registration."""
    return any(limits.get(limit.key) is not None for limit in LIMITS)


def _more(model: str, cut: bool) -> str:
    return f"a larger models.{model}.quality.chunks" if cut else f"more text in models.{model}.quality"


def _found(limit: Limit, found: float, allowed: float, error: float | None) -> str:
    if limit.least:
        figure = percent(found, error) if error else f"{apart(100 * found, 100 * allowed)[0]} %"
    else:
        figure = with_error(found, error) if error else apart(found, allowed)[0]
    return f"{limit.says} {figure}{limit.unit}"


def _allowed(limit: Limit, found: float, allowed: float) -> str:
    if limit.least:
        return f"{apart(100 * found, round(100 * allowed, 9))[1]} %"
    return apart(found, allowed)[1]


def _by_how_much(limit: Limit, found: float, allowed: float) -> str:
    difference = (
        f"{plain(100 * (allowed - found))} points too little" if limit.least else f"{plain(found - allowed)} too much"
    )
    if limit.room(allowed) <= 0 or limit.room(found) <= 0:
        return difference
    return f"{difference}, {times(limit.room(found) / limit.room(allowed))} {limit.room_words}"
