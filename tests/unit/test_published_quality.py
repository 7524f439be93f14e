"""The published figures are those of llama.cpp's table, and the order of the types follows from them."""

import pytest

from ollamake.published_quality import CANDIDATES, by_quality, published_quality, quality_class
from ollamake.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED

SCOREBOARD = """
| Quantization | imatrix | Model size [GiB] | PPL | ΔPPL | KLD |
| q8_0 | None | 7.96 | 6.234284 ± 0.037878 | 0.002650 ± 0.001006 | 0.001355 ± 0.000006 |
| q6_K | None | 6.14 | 6.253382 ± 0.038078 | 0.021748 ± 0.001852 | 0.005452 ± 0.000035 |
| q5_K_M | None | 5.33 | 6.288607 ± 0.038338 | 0.056974 ± 0.002598 | 0.010762 ± 0.000079 |
| q5_K_S | None | 5.21 | 6.336598 ± 0.038755 | 0.104964 ± 0.003331 | 0.016595 ± 0.000122 |
| q5_1 | None | 5.65 | 6.337857 ± 0.038677 | 0.106223 ± 0.003476 | 0.018045 ± 0.000139 |
| q5_0 | None | 5.21 | 6.363224 ± 0.038861 | 0.131591 ± 0.003894 | 0.022239 ± 0.000166 |
| q4_K_M | WT 10m | 4.58 | 6.382937 ± 0.039055 | 0.151303 ± 0.004429 | 0.028152 ± 0.000240 |
| q4_K_M | None | 4.58 | 6.407115 ± 0.039119 | 0.175482 ± 0.004620 | 0.031273 ± 0.000238 |
| q4_K_S | WT 10m | 4.37 | 6.409697 ± 0.039189 | 0.178064 ± 0.004744 | 0.031951 ± 0.000259 |
| iq4_NL | WT 10m | 4.35 | 6.455593 ± 0.039630 | 0.223959 ± 0.005201 | 0.035742 ± 0.000288 |
| iq4_XS | WT 10m | 4.14 | 6.459705 ± 0.039595 | 0.228071 ± 0.005207 | 0.036334 ± 0.000284 |
| q4_K_S | None | 4.37 | 6.500529 ± 0.039778 | 0.268895 ± 0.005638 | 0.043136 ± 0.000314 |
| q4_1 | None | 4.78 | 6.682737 ± 0.041285 | 0.451103 ± 0.008030 | 0.071683 ± 0.000505 |
| q4_0 | None | 4.34 | 6.700147 ± 0.041226 | 0.468514 ± 0.007951 | 0.071940 ± 0.000491 |
| q3_K_L | WT 10m | 4.03 | 6.671223 ± 0.041427 | 0.439590 ± 0.008154 | 0.073077 ± 0.000529 |
| q3_K_M | WT 10m | 3.74 | 6.734255 ± 0.041838 | 0.502622 ± 0.008901 | 0.084358 ± 0.000588 |
| q3_K_L | None | 4.03 | 6.787876 ± 0.042104 | 0.556242 ± 0.009171 | 0.087176 ± 0.000614 |
| q3_K_M | None | 3.74 | 6.888498 ± 0.042669 | 0.656864 ± 0.010071 | 0.101913 ± 0.000677 |
| iq3_M | WT 10m | 3.53 | 6.898327 ± 0.041643 | 0.666694 ± 0.009449 | 0.102534 ± 0.000663 |
| iq3_S | WT 10m | 3.42 | 6.965501 ± 0.042406 | 0.733867 ± 0.010245 | 0.111278 ± 0.000710 |
| iq3_XS | WT 10m | 3.28 | 7.163043 ± 0.043772 | 0.931409 ± 0.012084 | 0.138693 ± 0.000857 |
| iq3_XXS | WT 10m | 3.05 | 7.458436 ± 0.046404 | 1.226803 ± 0.015234 | 0.183625 ± 0.001042 |
| q3_K_S | WT 10m | 3.41 | 7.602878 ± 0.046848 | 1.371244 ± 0.015688 | 0.199821 ± 0.001008 |
| q3_K_S | None | 3.41 | 7.863786 ± 0.048885 | 1.632152 ± 0.017733 | 0.228217 ± 0.001079 |
| iq2_M | WT 10m | 2.74 | 8.600799 ± 0.055124 | 2.369166 ± 0.025244 | 0.325989 ± 0.00160 |
| q2_K | WT 10k | 2.96 | 8.652290 ± 0.055572 | 2.420657 ± 0.025587 | 0.331393 ± 0.001562 |
| q2_K | WT 100k | 2.96 | 8.641993 ± 0.055406 | 2.410359 ± 0.025495 | 0.331672 ± 0.001569 |
| q2_K | WT 10m | 2.96 | 8.647825 ± 0.055610 | 2.416191 ± 0.025683 | 0.332223 ± 0.001572 |
| q2_K | WT 1m | 2.96 | 8.674365 ± 0.055743 | 2.442732 ± 0.025843 | 0.335308 ± 0.001576 |
| q2_K | WT 1k | 2.96 | 8.682605 ± 0.055916 | 2.450972 ± 0.026069 | 0.337093 ± 0.001596 |
| q2_K_S | WT 10m | 2.96 | 9.323778 ± 0.061551 | 3.092145 ± 0.031914 | 0.403360 ± 0.001787 |
| q2_K_S | WT 1m | 2.96 | 9.329321 ± 0.061378 | 3.097688 ± 0.031816 | 0.403590 ± 0.001797 |
| q2_K_S | WT 100k | 2.96 | 9.362973 ± 0.061740 | 3.131339 ± 0.032169 | 0.408367 ± 0.001802 |
| q2_K_S | WT 10k | 2.96 | 9.376479 ± 0.062045 | 3.144846 ± 0.032464 | 0.408662 ± 0.001819 |
| q2_K_S | WT 1k | 2.96 | 9.415200 ± 0.062475 | 3.183567 ± 0.032993 | 0.415865 ± 0.001846 |
| iq2_S | WT 10m | 2.56 | 9.650781 ± 0.063209 | 3.419148 ± 0.034017 | 0.439197 ± 0.001976 |
| q2_K | None | 2.96 | 9.751568 ± 0.063312 | 3.519934 ± 0.033863 | 0.445132 ± 0.001835 |
| iq2_XS | WT 10m | 2.43 | 10.761424 ± 0.071056 | 4.529791 ± 0.042229 | 0.546290 ± 0.002133 |
| iq2_XXS | WT 10m | 2.24 | 14.091782 ± 0.098396 | 7.860148 ± 0.070752 | 0.812022 ± 0.002741 |
| iq1_M | WT 10m | 2.01 | 25.493722 ± 0.177903 | 19.262089 ± 0.152396 | 1.393084 ± 0.003529 |
| iq1_S | WT 1m | 1.88 | 58.097760 ± 0.438604 | 51.866126 ± 0.416604 | 2.211278 ± 0.004688 |
| iq1_S | WT 1k | 1.88 | 58.267851 ± 0.446208 | 52.036218 ± 0.424373 | 2.214858 ± 0.004778 |
| iq1_S | WT 100k | 1.88 | 58.581498 ± 0.453145 | 52.349864 ± 0.431360 | 2.220834 ± 0.004818 |
| iq1_S | WT 10m | 1.88 | 60.694593 ± 0.471290 | 54.462959 ± 0.449644 | 2.254554 ± 0.004868 |
| iq1_S | WT 10k | 1.88 | 63.221324 ± 0.493077 | 56.989691 ± 0.471423 | 2.293527 ± 0.004885 |
"""
"""Rows of "LLaMA 3 8b Scoreboard" in tools/perplexity/README.md of llama.cpp, without the last columns and the f16 row."""

SAME_TOP_P = {"Q2_K": 71.138, "Q4_K_M": 91.901, "Q6_K": 96.031, "Q8_0": 97.674}
"""Row "Same top p" of the same file's "LLaMA 2 vs. LLaMA 3 Quantization comparison", Llama-3-8B, no imatrix."""


def scoreboard() -> dict[tuple[str, bool], tuple[float, float]]:
    """Return (type, with imatrix) -> (KLD, rise of perplexity in per cent), of the matrix used for all types."""
    figures = {}
    for line in SCOREBOARD.strip().splitlines()[1:]:
        kind, matrix, _, perplexity, rise, kld = (cell.strip() for cell in line.strip("|").split("|"))
        if matrix in ("None", "WT 10m"):
            above = float(rise.split()[0])
            base = float(perplexity.split()[0]) - above
            figures[kind.upper(), matrix != "None"] = (float(kld.split()[0]), 100 * above / base)
    return figures


def test_the_figures_are_the_published_ones() -> None:
    published = scoreboard()
    assert len(published) == 33
    for (kind, imatrix), (kld, ppl_percent) in published.items():
        ours = published_quality(kind, imatrix)
        assert ours is not None, kind
        assert ours["kld"] == kld, kind
        assert ours["ppl_percent"] == pytest.approx(ppl_percent, abs=0.0006), kind
        assert ours["top1_percent"] == (None if imatrix else SAME_TOP_P.get(kind)), kind
        assert ("with an importance" in ours["source"]) is imatrix
        assert ours["class"] == quality_class(kld)


def test_every_figure_was_published() -> None:
    published = scoreboard()
    names = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
    for kind in QUANTIZATION_TYPES.keys() - UNQUANTIZED:
        for imatrix in (False, True):
            ours = published_quality(kind, imatrix)
            name = names.get(kind, kind)
            with_one = imatrix or QUANTIZATION_TYPES[kind].needs_imatrix
            best = published.get((name, True)) if with_one else None
            expected = best or published.get((name, False))
            assert (ours["kld"] if ours else None) == (expected[0] if expected else None), kind


def test_a_type_that_needs_an_imatrix_has_the_figures_with_one() -> None:
    assert published_quality("IQ2_M") == published_quality("IQ2_M", imatrix=True)
    assert published_quality("Q2_K_S")["kld"] == 0.403360


def test_figures_with_an_imatrix_are_not_promised_without_one() -> None:
    for kind in ("IQ4_XS", "IQ4_NL", "IQ3_M", "IQ3_S"):
        assert published_quality(kind) is None
        assert published_quality(kind, imatrix=True) is not None


def test_figures_without_an_imatrix_stand_for_both_where_only_they_exist() -> None:
    quality = published_quality("Q6_K", imatrix=True)
    assert quality == published_quality("Q6_K")
    assert "without importance" in quality["source"]


def test_nothing_is_known_of_types_for_models_trained_for_them() -> None:
    for kind in ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE"):
        assert published_quality(kind) is None
        assert published_quality(kind, imatrix=True) is None
    with pytest.raises(KeyError):
        published_quality("Q7_K")


def test_floating_point_is_lossless() -> None:
    for kind in UNQUANTIZED:
        quality = published_quality(kind)
        assert quality["class"] == "lossless"
        assert quality["kld"] < 0.0001
    # "LLaMA 3 BF16 vs. FP16 comparison": Mean KLD 0.00002515, Same top p 99.739, Mean PPL(Q)/PPL(base) 1.000404.
    assert published_quality("F16")["top1_percent"] == 99.739
    assert published_quality("F16")["kld"] == pytest.approx(0.00002515, rel=0.01)
    assert published_quality("F16")["ppl_percent"] == pytest.approx(0.0404, abs=0.001)


def test_classes_are_the_bands() -> None:
    classes = {kind: published_quality(kind)["class"] for kind in CANDIDATES if published_quality(kind)}
    assert classes == {
        "Q8_0": "near-lossless",
        "Q6_K": "good",
        "Q5_K_M": "good",
        "Q5_K_S": "good",
        "Q4_K_M": "usual for 4 bits",
        "Q4_K_S": "usual for 4 bits",
        "Q3_K_L": "visible loss",
        "Q3_K_M": "visible loss",
        "Q3_K_S": "bad",
        "Q2_K": "bad",
    }
    assert [quality_class(kld) for kld in (0.00299, 0.003, 0.0199, 0.02, 0.0499, 0.05, 0.1499, 0.15)] == [
        "near-lossless",
        "good",
        "good",
        "usual for 4 bits",
        "usual for 4 bits",
        "visible loss",
        "visible loss",
        "bad",
    ]


def test_the_order_has_every_type_once() -> None:
    assert sorted(by_quality()) == sorted(QUANTIZATION_TYPES)
    assert len(by_quality()) == 38


@pytest.mark.parametrize("imatrix", [False, True])
def test_the_order_is_that_of_the_published_divergence(imatrix: bool) -> None:
    published = scoreboard()
    names = [kind for kind in by_quality() if (kind, imatrix) in published]
    assert len(names) == (19 if imatrix else 14)
    divergences = [published[kind, imatrix][0] for kind in names]
    assert divergences == sorted(divergences)


def test_the_order_where_nothing_was_published() -> None:
    order = by_quality()
    assert order[:4] == ["F32", "F16", "BF16", "Q8_0"]
    for name in ("Q3_K", "Q4_K", "Q5_K"):
        assert order.index(name) == order.index(f"{name}_M") + 1
    assert order.index("MXFP4_MOE") == order.index("Q4_0") + 1
    assert order[-4:] == ["Q2_0", "TQ2_0", "TQ1_0", "Q1_0"]


def test_candidates_are_in_order_and_need_no_imatrix() -> None:
    order = by_quality()
    assert sorted(CANDIDATES, key=order.index) == list(CANDIDATES)
    assert not [kind for kind in CANDIDATES if QUANTIZATION_TYPES[kind].needs_imatrix]
    bits = [QUANTIZATION_TYPES[kind].bits_per_weight for kind in CANDIDATES]
    assert bits == sorted(bits, reverse=True)


def test_no_candidate_has_a_smaller_and_better_type() -> None:
    """Compared on one footing: without an imatrix where that was published, else with one."""
    published = scoreboard()
    sizes = {kind: QUANTIZATION_TYPES[kind].bits_per_weight for kind, _ in published}
    for candidate in CANDIDATES:
        imatrix = (candidate, False) not in published
        kld = published[candidate, imatrix][0]
        better = [
            kind
            for (kind, with_one), (other, _) in published.items()
            if with_one == imatrix and other < kld and sizes[kind] <= sizes[candidate]
        ]
        assert not better, candidate
