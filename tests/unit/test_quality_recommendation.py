"""The smallest type that keeps the limits and fits is recommended, and set beside the plan's choice by measured figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_plan import sample_plan
from sample_quality import (
    FIGURES,
    NO_LIMITS,
    fitting_plan,
    measurement,
    record,
    reference_record,
    sample_quality,
    text_record,
)

from ollamake.published_quality import quality_class
from ollamake.quality_figures import GOOD_KLD
from ollamake.quality_recommendation import pareto_front
from ollamake.quality_summary import summarize

ALL = tuple(FIGURES)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6).map(lambda x: x / 4)), max_size=12))
def test_the_front_is_what_nothing_is_better_than(points: list[tuple[float, float]]) -> None:
    def is_better(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    assert pareto_front(points) == [not any(is_better(other, one) for other in points) for one in points]


def test_good_is_where_the_published_band_ends() -> None:
    assert quality_class(GOOD_KLD * 0.999) == "good"
    assert quality_class(GOOD_KLD) != "good"


def test_the_front_of_the_sample() -> None:
    rows = sample_quality(ALL)["rows"]
    assert [row["type"] for row in rows if not row["pareto"]] == ["Q4_K_S"]


@pytest.mark.parametrize(
    ("options", "recommended"),
    [
        ({"limits": {"max_kld_mean": 0.05}}, "IQ4_XS"),
        ({"limits": {"max_kld_mean": 0.02}}, "Q5_K_S"),
        ({"limits": {"max_kld_mean": 0.02, "max_ppl_ratio": 1.01}}, "Q5_K_M"),
        ({"limits": {"min_top1": 0.95}}, "Q6_K"),
        # Q8_0 would keep it but does not fit.
        ({"limits": {"max_kld_mean": 0.002}}, None),
        ({"limits": {"max_kld_mean": 0.002}, "usable_mib": 10000}, "Q8_0"),
        ({"limits": {"max_kld_mean": 0.0001}, "usable_mib": 30000}, "F16"),
        ({}, "Q5_K_S"),
        ({"usable_mib": 6000, "planned": "Q4_K_S"}, "Q4_K_S"),
        ({"usable_mib": 2000, "planned": None}, None),
    ],
)
def test_which_is_recommended(options: dict[str, Any], recommended: str | None) -> None:
    found = sample_quality(ALL, **options)["recommendation"]
    assert (None if found is None else found["type"]) == recommended


def sentence(types: tuple[str, ...] = ALL, **options: Any) -> str:
    found = sample_quality(types, **options)["recommendation"]
    assert found is not None
    return str(found["sentence"])


def test_it_is_set_beside_the_plans_choice() -> None:
    assert sentence(limits={"max_kld_mean": 0.02}) == (
        "Q5_K_S (5.59 GB, mean KLD 0.01659 ± 0.00012) is the smallest measured type within the limits that fits RTX 3080 10GB."
        " Against the plan's choice Q6_K (6.59 GB, mean KLD 0.005452 ± 0.000035): 1.00 GB of disk and 0.93 GiB of memory saved,"
        " 0.0111 nats a token given up, both measured on this text."
    )
    assert "smallest measured type good by the published bands (mean KLD below 0.02) that fits" in sentence()
    assert "0.0111 nats a token given up" in sentence()


def test_the_plans_choice_itself() -> None:
    said = sentence(limits={"min_top1": 0.95})
    assert said.startswith("Q6_K (6.59 GB")
    assert said.endswith("that fits RTX 3080 10GB, as planned.")


def test_a_plan_that_is_beyond_the_limits() -> None:
    said = sentence(limits={"max_kld_mean": 0.02}, planned="Q4_K_M")
    assert said.startswith("Q5_K_S (5.59 GB")
    assert "0.68 GB of disk and 0.63 GiB of memory more, 0.0147 nats a token gained" in said
    assert "The plan's choice is beyond the limits. Q4_K_M: mean KL divergence 0.03127 ± 0.00024" in said


def test_a_plan_that_was_not_measured() -> None:
    assert "The plan's choice Q6_K was not measured: add it to models.m.quality.compare" in sentence(("Q8_0", "Q5_K_S"))


def test_a_plan_of_the_unquantized() -> None:
    said = sentence(("Q8_0", "Q4_K_M"), usable_mib=30000, planned="F16")
    assert "The plan's choice is the unquantized F16 (16.07 GB): 7.53 GB of disk saved, mean KLD 0.001355" in said


def test_one_that_is_only_compared() -> None:
    said = sentence(limits={"max_kld_mean": 0.02}, compare=["Q5_K_S"])
    assert said.endswith("It was measured for comparison only: add it to models.m.quantizations to register it.")
    assert "comparison only" not in sentence(limits={"max_kld_mean": 0.02})


def test_without_limits_and_without_a_good_one() -> None:
    few = ("Q4_K_M", "Q2_K")
    assert sentence(few, planned="Q4_K_M") == (
        "None of the measured types that fit is good by the published bands (mean KLD below 0.02), so it is the plan's choice:"
        " Q4_K_M (mean KLD 0.03127 ± 0.00024 on this text, in the published band “usual for 4 bits”)."
    )
    assert sentence(few, planned="Q6_K").endswith("Q6_K (which was not measured on this text).")
    assert sentence(few, planned="F16").endswith("F16 (the unquantized fine-tune, of which nothing is lost).")
    quality = sample_quality(few, planned=None)
    assert quality["recommendation"] is None
    assert any("the plan recommends none" in said for said in quality["sentences"])


def test_what_fits_may_be_unknown() -> None:
    plan = sample_plan(gpus=[], ram_gib=None)
    quality = sample_quality(("Q8_0", "Q5_K_S"), plan=plan)
    assert quality["budget"] is None
    assert {row["fits"] for row in quality["rows"]} == {None}
    assert quality["recommendation"]["type"] == "Q5_K_S"
    assert "whether it fits is unknown" in quality["recommendation"]["sentence"]


def test_why_there_is_none() -> None:
    (said,) = [
        s for s in sample_quality(ALL, limits={"max_kld_mean": 0.002})["sentences"] if s.startswith("No measured")
    ]
    assert said == (
        "No measured type is recommended: F16 is within the limits but does not fit RTX 3080 10GB; Q8_0 is within the limits but"
        " does not fit RTX 3080 10GB. What helps: types of more bits (models.m.quantizations, or models.m.quality.compare to"
        " measure them only), an importance matrix from your own text (models.m.imatrix; none was used), other limits"
        " (models.m.quality)."
    )
    with_matrix = sample_quality(("Q4_K_M",), limits={"max_kld_mean": 0.002}, imatrix=["Q4_K_M"])
    (said,) = [s for s in with_matrix["sentences"] if s.startswith("No measured")]
    assert said.startswith("No measured type is within the limits. What helps: types of more bits")
    assert "none was used" not in said


def test_of_two_of_one_size_the_better() -> None:
    worse = measurement("Q5_K_S", (0, 0.019, 1e-4, 1.02, 1e-4, 3.0, 94.0, 60.0))
    plan = fitting_plan()
    for order in (1, -1):
        quality = summarize(
            "m", plan, text_record(), reference_record(), None, [measurement("Q5_K_M"), worse][::order],
            [record("Q5_K_M"), record("Q5_K_S", size=record("Q5_K_M")["size"])], [],
            {"limits": NO_LIMITS, "on_fail": "warn", "registered": []},
        )  # fmt: skip
        assert quality["recommendation"]["type"] == "Q5_K_M"
        assert [row["pareto"] for row in quality["rows"]] == [True, False]
