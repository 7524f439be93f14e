"""A quantization is held to each limit by its own figure, and what is beyond one is said with by how much."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sample_quality import NO_LIMITS, measurement, sample_quality

from ollamake.quality_configuration import BEFORE_REGISTRATION
from ollamake.quality_verdict import LIMITS, has_limits, verdict


def row(**figures: Any) -> dict[str, Any]:
    """Return the figures of a Q4_K_M that a verdict is about."""
    return {
        "type": "Q4_K_M", "unquantized": False, "kld_mean": 0.031273, "kld_mean_error": 0.000238, "kld_p99": 0.31273,
        "ppl_ratio": 1.02816, "ppl_ratio_error": 0.000737, "same_top": 0.91901, "same_top_error": 0.0007,
    } | figures  # fmt: skip


def sentences(found: dict[str, Any]) -> list[str]:
    return [failure["sentence"] for failure in found["failures"]]


def test_the_limits_are_those_of_the_configuration() -> None:
    assert tuple(limit.key for limit in LIMITS) == BEFORE_REGISTRATION


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ({"max_kld_mean": 0.05}, []),
        ({"max_kld_mean": 0.031273}, []),
        ({"max_kld_mean": 0.031272}, ["max_kld_mean"]),
        ({"max_kld_mean": 0}, ["max_kld_mean"]),
        ({"max_kld_p99": 0.31273}, []),
        ({"max_kld_p99": 0.3}, ["max_kld_p99"]),
        ({"max_ppl_ratio": 1.02816}, []),
        ({"max_ppl_ratio": 1.02}, ["max_ppl_ratio"]),
        ({"max_ppl_ratio": 1}, ["max_ppl_ratio"]),
        ({"min_top1": 0.91901}, []),
        ({"min_top1": 0.95}, ["min_top1"]),
        ({"max_kld_mean": 0.01, "max_kld_p99": 1, "max_ppl_ratio": 1.01, "min_top1": 0.99},
         ["max_kld_mean", "max_ppl_ratio", "min_top1"]),
    ],
)  # fmt: skip
def test_which_limits_are_kept(limits: dict[str, float], failed: list[str]) -> None:
    found = verdict(row(), NO_LIMITS | limits, "m")
    assert [failure["limit"] for failure in found["failures"]] == failed
    assert found["passes"] is (not failed)
    for failure in found["failures"]:
        assert failure["allowed"] == limits[failure["limit"]]
        assert f"models.m.quality.{failure['limit']} " in failure["sentence"]
        assert failure["sentence"].startswith("Q4_K_M: ")


def test_no_limit_is_no_verdict() -> None:
    for limits in (NO_LIMITS, {}):
        assert not has_limits(limits)
        assert verdict(row(), limits, "m") == {"passes": None, "failures": [], "close": []}


@pytest.mark.parametrize("figure", ["kld_mean", "kld_p99", "ppl_ratio", "same_top"])
def test_what_is_no_number_keeps_no_limit(figure: str) -> None:
    limits = {"max_kld_mean": 9.0, "max_kld_p99": 9.0, "max_ppl_ratio": 9.0, "min_top1": 0.0}
    assert verdict(row(), limits, "m")["passes"] is True
    assert verdict(row(**{figure: math.nan}), limits, "m")["passes"] is False


def test_by_how_much() -> None:
    limits = {"max_kld_mean": 0.02, "max_kld_p99": 0.1, "max_ppl_ratio": 1.02, "min_top1": 0.95}
    assert sentences(verdict(row(), limits, "m")) == [
        "Q4_K_M: mean KL divergence 0.03127 ± 0.00024 nats a token; models.m.quality.max_kld_mean allows 0.02: 0.0113 too much,"
        " 1.56 times the limit",
        "Q4_K_M: 99 % percentile of the KL divergence 0.313 nats a token; models.m.quality.max_kld_p99 allows 0.1: 0.213 too"
        " much, 3.13 times the limit",
        "Q4_K_M: perplexity 1.02816 ± 0.00074 times the fine-tune's; models.m.quality.max_ppl_ratio allows 1.02: 0.00816 too"
        " much, 1.41 times the rise that is allowed",
        "Q4_K_M: same likeliest token for 91.901 ± 0.070 % of tokens; models.m.quality.min_top1 asks for 95 %: 3.1 points too"
        " little, 1.62 times as many other tokens as allowed",
    ]


def test_no_factor_of_a_limit_that_allows_nothing() -> None:
    (kld,) = sentences(verdict(row(), {"max_kld_mean": 0}, "m"))
    (ratio,) = sentences(verdict(row(), {"max_ppl_ratio": 0.99}, "m"))
    (top,) = sentences(verdict(row(), {"min_top1": 1}, "m"))
    assert kld.endswith("allows 0: 0.0313 too much")
    assert ratio.endswith("allows 0.99: 0.0382 too much")
    assert top.endswith("asks for 100 %: 8.1 points too little")


def test_figures_that_would_look_equal_are_written_in_full() -> None:
    (said,) = sentences(verdict(row(kld_p99=0.1000004), {"max_kld_p99": 0.1}, "m"))
    assert "divergence 0.1000004 nats a token" in said
    assert "allows 0.1: 4.0e-07 too much, 1 times the limit" in said


@pytest.mark.parametrize(
    ("cut", "more"), [(True, "a larger models.m.quality.chunks"), (False, "more text in models.m.quality")]
)
def test_within_the_sampling_error(cut: bool, more: str) -> None:
    beyond = verdict(row(kld_mean=0.0212, kld_mean_error=0.0015), {"max_kld_mean": 0.02}, "m", cut)
    assert beyond["passes"] is False
    assert beyond["close"] == []
    assert "0.0212 ± 0.0015 nats a token; models.m.quality.max_kld_mean allows 0.02" in sentences(beyond)[0]
    assert sentences(beyond)[0].endswith(f"; within the sampling error: {more} would tell")
    kept = verdict(row(kld_mean=0.0191, kld_mean_error=0.0015), {"max_kld_mean": 0.02}, "m", cut)
    assert kept["passes"] is True
    assert kept["failures"] == []
    assert kept["close"] == [
        "Q4_K_M: mean KL divergence 0.0191 ± 0.0015 nats a token; models.m.quality.max_kld_mean allows 0.02; kept; within the"
        f" sampling error: {more} would tell"
    ]
    assert verdict(row(kld_mean=0.018, kld_mean_error=0.0015), {"max_kld_mean": 0.02}, "m", cut)["close"] == []


def test_the_unquantized_fine_tune_passes() -> None:
    nothing = {"max_kld_mean": 0.0, "max_kld_p99": 0.0, "max_ppl_ratio": 0.5, "min_top1": 1.0}
    found = verdict(row(unquantized=True, kld_mean=5.5e-4), nothing, "m")
    assert found == {"passes": True, "failures": [], "close": []}
    rows = sample_quality(("F16", "Q8_0"), limits=nothing)["rows"]
    assert [(one["type"], one["verdict"]["passes"]) for one in rows] == [("F16", True), ("Q8_0", False)]


def test_a_share_is_the_number_that_is_printed() -> None:
    # 91.901 / 100 is not 0.91901 in binary for every such number; a limit of what was printed must be kept.
    for top in (91.901, 97.674, 96.031, 71.138, 57.35, 29.07, 0.07):
        share = float(f"{top / 100:.5f}")
        quality = sample_quality(("Q8_0",), limits={"min_top1": share}, measured={"Q8_0": _top(top)})
        assert quality["rows"][0]["verdict"]["passes"] is True


def _top(percent: float) -> dict[str, Any]:
    return measurement("Q8_0", same_top={"value": percent, "error": 0.1})
