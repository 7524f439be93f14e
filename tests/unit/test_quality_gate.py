"""The gate stops what is beyond a limit and says what else there is; with on_fail warn it says so and lets it pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_quality import sample_quality

import judge_quality
from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record


def run_judge(folder: Path, kind: str, **options: Any) -> dict[str, Any]:
    quality, output = folder / "quality.json", folder / "verdict.json"
    quality.write_text(json.dumps(sample_quality(**options)), encoding="utf-8")
    judge_quality.main(["--type", kind, "--quality", str(quality), "--output", str(output)])
    return dict(read_record(output))


def refused(folder: Path, kind: str, **options: Any) -> list[str]:
    with pytest.raises(OllamakeError) as caught:
        run_judge(folder, kind, **options)
    assert not (folder / "verdict.json").exists()
    return str(caught.value).splitlines()


def test_a_limit_between_two_types_passes_one_and_stops_the_other(tmp_path: Path) -> None:
    limits = {"max_kld_mean": 0.02}
    assert run_judge(tmp_path, "Q5_K_M", limits=limits) == {
        "type": "Q5_K_M", "passes": True, "failures": [], "on_fail": "stop",
    }  # fmt: skip
    (tmp_path / "verdict.json").unlink()
    assert refused(tmp_path, "Q4_K_M", limits=limits, compare=["Q6_K"]) == [
        "Q4_K_M: mean KL divergence 0.03127 ± 0.00024 nats a token; models.m.quality.max_kld_mean allows 0.02: 0.0113 too much,"
        " 1.56 times the limit.",
        "The GGUF stays at results/m/gguf/m.Q4_K_M.gguf; it is not registered now. To register it all the same:"
        " models.m.quality.on_fail: warn.",
        "Measured and within the limits, smallest first: Q5_K_M (5.72 GB, fits RTX 3080 10GB); Q6_K (6.59 GB, fits RTX 3080"
        " 10GB, measured for comparison only); Q8_0 (8.55 GB, does not fit RTX 3080 10GB).",
        "The picture is results/m/quality.svg.",
    ]


def test_every_limit_is_named(tmp_path: Path) -> None:
    lines = refused(tmp_path, "Q2_K", limits={"max_kld_mean": 0.02, "min_top1": 0.9, "max_ppl_ratio": 2})
    assert ["max_kld_mean" in line for line in lines[:2]] == [True, False]
    assert "min_top1" in lines[1]
    assert lines[2].startswith("The GGUF stays")


@pytest.mark.parametrize("imatrix", [(), ("Q2_K",)])
def test_where_none_would_pass(tmp_path: Path, imatrix: tuple[str, ...]) -> None:
    lines = refused(tmp_path, "Q2_K", types=("Q4_K_M", "Q2_K"), limits={"max_kld_mean": 0.02}, imatrix=imatrix)
    (said,) = [
        line for line in lines if line.startswith("None of the measured types is within the limits. What helps:")
    ]
    assert "types of more bits" in said
    assert "other limits" in said
    assert ("an importance matrix" in said) == (not imatrix)


def test_a_warning_lets_it_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        found = run_judge(tmp_path, "Q4_K_M", limits={"max_kld_mean": 0.02}, on_fail="warn")
    assert (found["passes"], found["on_fail"], [one["limit"] for one in found["failures"]]) == (
        False, "warn", ["max_kld_mean"],
    )  # fmt: skip
    (warning,) = caplog.messages
    assert warning.startswith("warning: Q4_K_M: mean KL divergence")
    assert "it is registered, because models.m.quality.on_fail is warn." in warning
    assert "not registered" not in warning


def test_without_limits_all_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        assert run_judge(tmp_path, "Q2_K")["passes"] is None
    assert not caplog.messages


def test_a_type_that_was_not_measured(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "Q3_K_M", types=("Q8_0", "Q4_K_M"))
    assert line == "results/m/quality.json has no measurement of Q3_K_M (measured: Q8_0, Q4_K_M); build it again."
