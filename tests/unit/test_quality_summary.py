"""What was measured is put together by type, held to belong together, and summed up in sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_plan import sample_plan, without_memory
from sample_quality import (
    FIGURES,
    NO_LIMITS,
    base_measurement,
    fitting_plan,
    measurement,
    record,
    reference_record,
    sample_quality,
    size_of,
    speed,
    text_record,
)

import summarize_quality
from ollamake.errors import OllamakeError
from ollamake.quality_figures import apart, part_of, percent, plain, with_error
from ollamake.quality_rows import budget, quality_rows
from ollamake.quality_summary import summarize
from ollamake.record_seal import read_record

SPEC = {"limits": NO_LIMITS, "on_fail": "stop", "registered": ["Q4_K_M"]}


def test_a_row_has_the_figures_of_its_files() -> None:
    one = measurement("Q4_K_M")
    plan = fitting_plan()
    (row,) = quality_rows(
        [one], [record("Q8_0"), record("Q4_K_M")], [speed("Q8_0"), speed("Q4_K_M")], plan, reference_record(), ["Q4_K_M"],
    )  # fmt: skip
    assert row == {
        "type": "Q4_K_M", "size": size_of("Q4_K_M"), "bits_per_weight": record("Q4_K_M")["bits_per_weight"],
        "compared_only": False, "imatrix": False, "unquantized": False, "kld_mean": 0.031273, "kld_mean_error": 0.000238,
        "kld_median": one["kld"]["median"], "kld_p99": one["kld"]["p99"], "kld_max": one["kld"]["max"],
        "ppl": one["ppl"]["value"], "ppl_ratio": 1.02816, "ppl_ratio_error": 0.000737, "same_top": 0.91901,
        "same_top_error": 0.0007, "rms_delta_p": 0.05519, "prompt_per_second": 821.8, "generation_per_second": 71.93,
        "total_mib": (size_of("Q4_K_M") >> 20) + 1500, "fits": True,
    }  # fmt: skip


def test_what_was_not_measured_is_none() -> None:
    row = sample_quality(("Q4_K_M",), speeds=False, plan=sample_plan(gpus=[], ram_gib=None))["rows"][0]
    keys = ("prompt_per_second", "generation_per_second", "total_mib", "fits")
    assert [row[key] for key in keys] == [None] * 4
    unknown = sample_quality(("Q4_K_M",), plan=without_memory(fitting_plan(), "no formula"))["rows"][0]
    assert (unknown["total_mib"], unknown["fits"]) == (None, None)


def test_rows_are_by_size_and_what_is_not_registered_is_compared_only() -> None:
    quality = sample_quality(("Q2_K", "Q8_0", "Q4_K_M"), compare=["Q2_K"])
    assert [(row["type"], row["compared_only"]) for row in quality["rows"]] == [
        ("Q8_0", False), ("Q4_K_M", False), ("Q2_K", True),
    ]  # fmt: skip


def test_the_memory_is_that_of_the_file_with_a_matrix() -> None:
    plan = fitting_plan()
    row = next(row for row in plan["rows"] if row["type"] == "Q4_K_M")
    other = {"fits": True, "total_mib": 4321, "free_mib": 1}
    plan["with_imatrix"] = [row | {"imatrix": True, "fits": [fit | other for fit in row["fits"]]}]
    for imatrix, total in ((["Q4_K_M"], 4321), ([], (size_of("Q4_K_M") >> 20) + 1500)):
        (found,) = sample_quality(("Q4_K_M",), plan=plan, imatrix=imatrix)["rows"]
        assert found["total_mib"] == total


@pytest.mark.parametrize(
    ("changes", "speeds", "message"),
    [
        ({"gguf_sha256": "0" * 64}, [], "measurement of Q4_K_M is of another GGUF"),
        ({"text_sha256": "0" * 64}, [], "measurement of Q4_K_M is of another text"),
        ({"reference_sha256": "0" * 64}, [], "measurement of Q4_K_M is of another reference"),
        ({}, [speed("Q4_K_M", gguf_sha256="0" * 64)], "speed of Q4_K_M was measured with another GGUF"),
        ({"measured": "Q3_K_M"}, [], "Q3_K_M was measured, but there is no record of its GGUF among Q4_K_M"),
    ],
)
def test_files_that_do_not_belong_together(changes: dict[str, Any], speeds: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(OllamakeError, match=message):
        quality_rows(
            [measurement("Q4_K_M", **changes)], [record("Q4_K_M")], speeds, fitting_plan(), reference_record(), []
        )


def test_a_base_on_another_text() -> None:
    with pytest.raises(OllamakeError, match="measurement of the base is of another text"):
        sample_quality(base=base_measurement(text_sha256="0" * 64))


@pytest.mark.parametrize("usable", [3000, 4000, 6000, 8192, 9000, 12000, 30000])
def test_the_largest_file_lies_between_what_fits_and_what_does_not(usable: int) -> None:
    found = budget(fitting_plan(usable_mib=usable))
    assert found is not None
    assert (found["name"], found["usable_mib"]) == ("RTX 3080 10GB", usable)
    for kind in FIGURES:
        assert (size_of(kind) <= found["largest_file"]) == ((size_of(kind) >> 20) + 1500 <= usable)
    # Here every file needs 1,500 MiB beside it.
    assert found["largest_file"] == pytest.approx((usable - 1500) << 20, abs=1 << 20)


def test_a_budget_that_is_not_known() -> None:
    assert budget(sample_plan(gpus=[], ram_gib=None)) is None
    found = budget(without_memory(fitting_plan(), "no formula"))
    assert found is not None
    assert found["largest_file"] is None


def test_what_training_changed_beside_what_quantizing_loses() -> None:
    quality = sample_quality(("Q4_K_M",), base=base_measurement(1.24, 3.2), limits={"max_kld_mean": 1})
    assert quality["sentences"][:2] == [
        "Quantizing to Q4_K_M changes the model 1/40 as much as training did (mean KLD 0.0313 against 1.24).",
        "Training changed the model by a mean KLD of 1.240 ± 0.011 nats a token; on this text the base's perplexity is 3.2 times"
        " the fine-tune's.",
    ]


@pytest.mark.parametrize(
    ("kld", "ratio", "said"),
    [
        (
            0.0031273,
            1.05,
            ["changes the model 10 times as much as training did", "is 1.050 ± 0.020 times the fine-tune's."],
        ),
        (0.0313, 0.95, ["as much as training did (mean KLD 0.0313 against 0.0313)", "the base expects this text more"]),
        (0.05, 1.01, ["changes the model 1/1.6 as much as", "which is no difference within the sampling error"]),
    ],
)
def test_training_that_changed_little(kld: float, ratio: float, said: list[str]) -> None:
    sentences = sample_quality(("Q4_K_M",), base=base_measurement(kld, ratio), limits={"max_kld_mean": 1})["sentences"]
    for sentence, part in zip(sentences, said, strict=False):
        assert part in sentence


def test_a_base_that_cannot_be_compared_and_none() -> None:
    base = {key: base_measurement()[key] for key in ("measured", "reference_sha256", "text_sha256")}
    base["not_comparable"] = "its vocabulary has 151,936 tokens, the fine-tune's 151,938."
    (said,) = [s for s in sample_quality(base=base)["sentences"] if "training" in s.lower()]
    assert said == "What training changed is not known: its vocabulary has 151,936 tokens, the fine-tune's 151,938."
    assert not any("training" in s.lower() for s in sample_quality()["sentences"])


def test_no_change_beyond_the_sampling_error() -> None:
    quality = sample_quality(("F16",), base=base_measurement(), limits={"max_kld_mean": 1}, usable_mib=30000)
    assert quality["sentences"][0] == (
        "Quantizing to F16 changes the model by no more than the sampling error (mean KLD 0)."
    )


def test_failures_and_warnings_are_said() -> None:
    text = text_record(warnings=["The text is in a language that the tokenizer does not know."])
    sentences = sample_quality(limits={"max_kld_mean": 0.02}, compare=["Q2_K"], text=text)["sentences"]
    assert [s.split(":")[0] for s in sentences if "max_kld_mean allows" in s] == ["Q4_K_M"]
    assert sentences[-1] == text["warnings"][0]


def test_a_short_text_is_said() -> None:
    few = measurement("Q4_K_M", (0, 0.03, 0.012, 1.03, 0.01, 5.0, 92.0, 70.0))
    quality = sample_quality(("Q8_0", "Q4_K_M"), measured={"Q4_K_M": few})
    (said,) = [s for s in quality["sentences"] if s.startswith("The text is short")]
    assert "40 % for Q4_K_M; 4 times the text would halve it." in said
    assert not any("text is short" in s for s in sample_quality()["sentences"])


def test_perplexities_are_compared_in_full() -> None:
    """The ratio that is printed is to what was stored of the fine-tune's probabilities, which may be less."""
    short = measurement(
        "Q8_0", ppl={"value": 6.3, "error": 0.04}, ppl_reference={"value": 6.0, "error": 0.04},
        ppl_ratio={"value": 1.05, "error": 0.002},
    )  # fmt: skip
    (row,) = sample_quality(("Q8_0",), measured={"Q8_0": short})["rows"]
    reference = reference_record()["ppl"]["value"]
    assert row["ppl_ratio"] == pytest.approx(6.3 / reference, abs=1e-6)
    assert row["ppl_ratio_error"] == pytest.approx(0.002 * 6.3 / reference / 1.05, abs=1e-6)


def test_how_figures_are_written() -> None:
    assert [plain(x) for x in (-0.0, 124683.4, 22042.0, -1234.5)] == ["0", "124,683", "22,042", "-1,234"]
    assert with_error(-0.0, 0.0) == "0"
    assert apart(1234.5, 1000) == ("1,234", "1000")
    assert [plain(x) for x in (0, 0.031273, 1.24, 12.5, 123.4, 0.000012, 2.3e-7, -0.00021)] == [
        "0", "0.0313", "1.24", "12.5", "123", "0.000012", "2.3e-07", "-0.00021",
    ]  # fmt: skip
    assert with_error(0.031273, 0.000238) == "0.03127 ± 0.00024"
    assert (with_error(1.0, 0.0), with_error(0.25, None)) == ("1", "0.25")
    assert (percent(0.91901, 0.0021), percent(0.875)) == ("91.90 ± 0.21 %", "87.5 %")
    assert [part_of(part, 1.0) for part in (0.025, 0.5, 1.0, 4.0)] == [
        "1/40 as much", "1/2 as much", "as much", "4 times as much",
    ]  # fmt: skip
    assert apart(0.0200001, 0.02) == ("0.0200001", "0.02")


OVERLAP = {"share": 0.03, "sentence": "a", "warnings": ["3 % of the text to measure on was calibrated on."]}


def run_script(folder: Path, base: bool) -> dict[str, Any]:
    def write(name: str, content: Any) -> str:
        path = folder / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    summarize_quality.main(
        [
            *("--model", "m", "--plan", write("plan.json", fitting_plan())),
            *(
                "--text-record",
                write("evaluation.json", text_record()),
                "--reference",
                write("r.json", reference_record()),
            ),
            *(("--base", write("base.json", base_measurement())) if base else ("--base",)),
            *("--measured", write("a.json", measurement("Q4_K_M")), write("b.json", measurement("Q8_0"))),
            *("--records", write("ra.json", record("Q4_K_M")), write("rb.json", record("Q8_0"))),
            *("--speeds", *([write("sa.json", speed("Q4_K_M"))] if base else [])),
            *(("--overlap", write("overlap.json", OVERLAP)) if base else ("--overlap",)),
            *("--spec", json.dumps(SPEC)),
            *("--output", str(folder / "quality.json"), "--table", str(folder / "quality.md")),
            *("--picture", str(folder / "pictures/quality.svg")),
        ]
    )
    return dict(read_record(folder / "quality.json"))


@pytest.mark.parametrize("base", [True, False])
def test_the_script_writes_all_three(tmp_path: Path, caplog: pytest.LogCaptureFixture, base: bool) -> None:
    with caplog.at_level("INFO"):
        quality = run_script(tmp_path, base)
    expected = summarize(
        "m", fitting_plan(), text_record(), reference_record(), base_measurement() if base else None,
        [measurement("Q4_K_M"), measurement("Q8_0")], [record("Q4_K_M"), record("Q8_0")], [speed("Q4_K_M")] if base else [],
        SPEC, OVERLAP if base else None,
    )  # fmt: skip
    assert quality == expected
    assert quality["overlap"] == (0.03 if base else None)
    assert (quality["sentences"][-1] == OVERLAP["warnings"][0]) is base
    assert caplog.messages == quality["sentences"]
    assert "![Size and loss of each type](pictures/quality.svg)" in (tmp_path / "quality.md").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "pictures/quality.svg").read_bytes().startswith(b"<?xml")
