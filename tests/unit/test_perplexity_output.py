"""llama-perplexity's own lines, recorded from the pinned version, and lines made with the formats of its source."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamake.perplexity_output import (
    ChunkFigures,
    chunk_figures,
    chunks_needed,
    final_estimate,
    nonfinite_figures,
    parse_statistics,
    scored_tokens,
)

ROWS = """\
0.02 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1    138148.7515 ± 34744.1027       0.05555 ±    0.01669       0.00744 ±    0.00170     0.592 ±  0.202 %    96.471 ±  1.158 %
  20    116698.3175 ± 6518.0162       0.05558 ±    0.00390       0.00984 ±    0.00049     0.539 ±  0.076 %    96.647 ±  0.252 %

"""

STATISTICS = """\
====== Perplexity statistics ======
Mean PPL(Q)                   : 116698.317531 ± 6518.016246
Mean PPL(base)                : 110388.968323 ± 6088.777390
Cor(ln(PPL(Q)), ln(PPL(base))):  99.76%
Mean ln(PPL(Q)/PPL(base))     :   0.055582 ±   0.003904
Mean PPL(Q)/PPL(base)         :   1.057156 ±   0.004128
Mean PPL(Q)-PPL(base)         : 6309.349208 ± 611.872080

====== KL divergence statistics ======
Mean    KLD:   0.009842 ±   0.000495
Maximum KLD:   0.969994
99.9%   KLD:   0.471016
99.0%   KLD:   0.145529
95.0%   KLD:   0.043138
90.0%   KLD:   0.020571
Median  KLD:   0.001343
10.0%   KLD:   0.000281
 5.0%   KLD:   0.000197
 1.0%   KLD:   0.000075
 0.1%   KLD:   0.000005
Minimum KLD:  -0.000001

====== Token probability statistics ======
Mean    Δp: -0.018 ± 0.008 %
Maximum Δp: 17.902%
99.9%   Δp:  3.069%
99.0%   Δp:  0.386%
95.0%   Δp:  0.013%
90.0%   Δp:  0.003%
75.0%   Δp:  0.000%
Median  Δp: -0.000%
25.0%   Δp: -0.000%
10.0%   Δp: -0.004%
 5.0%   Δp: -0.017%
 1.0%   Δp: -0.591%
 0.1%   Δp: -7.149%
Minimum Δp: -13.338%
RMS Δp    :  0.539 ± 0.076 %
Same top p: 96.647 ± 0.252 %

"""

FIGURES = {
    "ppl": {"value": 116698.317531, "error": 6518.016246},
    "ppl_reference": {"value": 110388.968323, "error": 6088.777390},
    "ppl_correlation": 99.76,
    "ln_ppl_ratio": {"value": 0.055582, "error": 0.003904},
    "ppl_ratio": {"value": 1.057156, "error": 0.004128},
    "ppl_difference": {"value": 6309.349208, "error": 611.872080},
    "kld": {"mean": {"value": 0.009842, "error": 0.000495}, "max": 0.969994, "p99_9": 0.471016, "p99": 0.145529, "p95": 0.043138,
            "p90": 0.020571, "median": 0.001343, "p10": 0.000281, "p5": 0.000197, "p1": 0.000075, "p0_1": 0.000005,
            "min": -0.000001},
    "delta_p": {"mean": {"value": -0.018, "error": 0.008}, "max": 17.902, "p99_9": 3.069, "p99": 0.386, "p95": 0.013,
                "p90": 0.003, "p75": 0.0, "median": 0.0, "p25": 0.0, "p10": -0.004, "p5": -0.017, "p1": -0.591, "p0_1": -7.149,
                "min": -13.338, "rms": {"value": 0.539, "error": 0.076}},
    "same_top": {"value": 96.647, "error": 0.252},
}  # fmt: skip

OF_NAN = """\
Mean PPL(Q)                   :        nan ±        nan
Mean PPL(base)                : 2812543.566118 ± 341441.511928
Cor(ln(PPL(Q)), ln(PPL(base))):    nan%
Mean    KLD:       -nan ±   0.000000
Maximum KLD:        inf
Minimum KLD:       -inf
Mean    Δp:   -nan ± 0.000 %
Same top p: 87.500 ± 1.475 %
"""


def test_every_line_becomes_a_figure() -> None:
    figures, printed, missing = parse_statistics(ROWS + STATISTICS)
    assert missing == []
    assert figures == FIGURES
    assert printed == [line for line in STATISTICS.splitlines() if line and not line.startswith("=")]
    assert nonfinite_figures(figures) == []


@pytest.mark.parametrize("line", [line for line in STATISTICS.splitlines() if ":" in line])
def test_a_missing_line_is_missed(line: str) -> None:
    label = " ".join(line.rpartition(":")[0].split())
    assert parse_statistics(STATISTICS.replace(line + "\n", ""))[2] == [label]
    assert parse_statistics(STATISTICS + line + "\n")[2] == [label], "a figure that is there twice is none"
    assert parse_statistics(STATISTICS.replace(line, line[: line.rindex(".")]))[2] == [label], "a line that breaks off"


def test_nothing_printed() -> None:
    figures, printed, missing = parse_statistics(ROWS)
    assert (figures, printed) == ({}, [])
    assert len(missing) == 34


def test_what_is_not_finite_is_named() -> None:
    figures, _, _ = parse_statistics(OF_NAN)
    names = nonfinite_figures(figures)
    assert set(names) == {
        *("ppl.value", "ppl.error", "ppl_correlation", "kld.mean.value", "kld.max", "kld.min", "delta_p.mean.value"),
    }  # fmt: skip


def test_an_uncertainty_of_nothing() -> None:
    """Of two models that are equal to the last bit: 0.5/0*0, and the root of a difference that comes out below 0."""
    figures, _, _ = parse_statistics(
        "RMS Δp    :  0.000 ±  -nan %\nMean ln(PPL(Q)/PPL(base))     :   0.000000 ±       -nan\n"
        "Mean PPL(Q)                   : 259.000000 ±        nan\n"
    )
    assert figures["delta_p"]["rms"] == {"value": 0.0, "error": 0.0}
    assert figures["ln_ppl_ratio"] == {"value": 0.0, "error": 0.0}
    assert nonfinite_figures(figures) == ["ppl.error"]


def test_chunks_of_a_comparison() -> None:
    pieces = ROWS.splitlines()
    assert list(filter(None, map(chunk_figures, pieces))) == [
        ChunkFigures(1, 138148.7515, 0.00744, True),
        ChunkFigures(20, 116698.3175, 0.00984, True),
    ]


OF_NAN_ROWS = """\
   6          nan ±       nan           nan ±        nan           nan ±    0.00000      -nan ±   -nan %    83.333 ±  1.919 %
   1    19781920.3797 ± 11357617.0362          -nan ±       -nan       0.00000 ±    0.00000       nan ±    nan %     0.000 ±  0.000 %
   8      19.2513 ±    1.0000       0.00000 ±    0.00000           inf ±        nan     0.000 ±  0.000 %    87.500 ±  1.475 %
"""  # noqa: E501
"""NaN in the model, in the log-probabilities of the reference, and infinity."""


@pytest.mark.parametrize("row", OF_NAN_ROWS.splitlines())
def test_a_chunk_of_nan(row: str) -> None:
    figures = chunk_figures(row)
    assert figures is not None
    assert not figures.finite


def test_chunks_of_a_perplexity() -> None:
    assert chunk_figures("[1]6.2113") == ChunkFigures(1, 6.2113, None, True)
    assert chunk_figures("[12]-nan") is not None
    assert not chunk_figures("[12]-nan").finite  # type: ignore[union-attr]
    assert not chunk_figures("[12]inf").finite  # type: ignore[union-attr]
    assert chunk_figures("0.10 minutes") is None
    assert chunk_figures("[12]6.") is None


def test_final_estimate() -> None:
    line = "perplexity: 1.29 seconds per pass - ETA 0.04.836.642 I Final estimate: PPL = 112667.1419 +/- 6260.60337\n"
    assert final_estimate(line) == {"value": 112667.1419, "error": 6260.60337}
    assert final_estimate("0.00.148.954 E Unexpected negative standard deviation of log(prob)\n") is None


def test_scored_tokens() -> None:
    assert scored_tokens(512, 20) == 5100  # as many as lie in the demo's file of log-probabilities
    assert [chunks_needed(context) for context in (512, 128, 64, 203, 16)] == [1, 2, 4, 1, 15]


numbers = st.floats(-1e7, 1e7, allow_nan=False)


@given(st.lists(numbers, min_size=50, max_size=50))
def test_what_is_printed_comes_back(values: list[float]) -> None:
    """The formats of kl_divergence(), each with a number of its own."""
    given = iter(values)
    said: dict[str, float] = {}

    def printed(name: str, width: int, decimals: int) -> str:
        text = f"{next(given):{width}.{decimals}f}"
        said[name] = float(text)
        return text

    def pair(name: str, width: int, decimals: int, error_width: int) -> str:
        return f"{printed(f'{name}.value', width, decimals)} ± {printed(f'{name}.error', error_width, decimals)}"

    lines = [
        f"Mean PPL(Q)                   : {pair('ppl', 10, 6, 10)}",
        f"Mean PPL(base)                : {pair('ppl_reference', 10, 6, 10)}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {printed('ppl_correlation', 6, 2)}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {pair('ln_ppl_ratio', 10, 6, 10)}",
        f"Mean PPL(Q)/PPL(base)         : {pair('ppl_ratio', 10, 6, 10)}",
        f"Mean PPL(Q)-PPL(base)         : {pair('ppl_difference', 10, 6, 10)}",
        f"Mean    KLD: {pair('kld.mean', 10, 6, 10)}",
        f"Mean    Δp: {pair('delta_p.mean', 6, 3, 5)} %",
        f"RMS Δp    : {pair('delta_p.rms', 6, 3, 5)} %",
        f"Same top p: {pair('same_top', 6, 3, 5)} %",
    ]
    labels = {"Maximum": "max", "99.9%  ": "p99_9", "99.0%  ": "p99", "95.0%  ": "p95", "90.0%  ": "p90", "Median ": "median",
              "10.0%  ": "p10", " 5.0%  ": "p5", " 1.0%  ": "p1", " 0.1%  ": "p0_1", "Minimum": "min"}  # fmt: skip
    for label, key in labels.items():
        lines.append(f"{label} KLD: {printed(f'kld.{key}', 10, 6)}")
    for label, key in (labels | {"75.0%  ": "p75", "25.0%  ": "p25"}).items():
        lines.append(f"{label} Δp: {printed(f'delta_p.{key}', 6, 3)}%")
    figures, found, missing = parse_statistics("\n".join(lines))
    assert (missing, found) == ([], lines)
    assert dict(flat(figures)) == said
    assert all(math.isfinite(value) for value in said.values())


def flat(figures: dict[str, object], before: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in figures.items():
        pairs += flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return pairs
