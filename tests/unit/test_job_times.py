"""Times of jobs, from benchmarks in the form that Snakemake writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import estimate_times
from ollamake.job_times import NEWEST, estimate, in_words, merge_kind, throughput, times_of_build
from ollamake.quantization_types import QUANTIZATION_TYPES
from ollamake.record_seal import read_record

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
GB = 10**9


class Machine:
    """Folders of benchmarks and results, filled job by job."""

    def __init__(self, folder: Path) -> None:
        self.benchmarks, self.results = folder / "benchmarks", folder / "results"

    def _job(
        self, benchmark: str, record: str, content: dict[str, Any], seconds: float | str, load: float | str
    ) -> None:
        line = f"{seconds}\t0:00:01\t540.45\t3333.66\tNA\t-\t0.00\t2.20\t{load}\t1.47\n"
        for file, text in (
            (self.benchmarks / benchmark, HEADER + line),
            (self.results / record, json.dumps(content)),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def merged(self, model: str, shard: str, size: int, seconds: float, kind: str = "low_rank") -> None:
        content = {"output": {"size": size}, "tensors": {"w": {"kind": kind}}}
        record = f"{model}/merge_records/model-{shard}.json"
        self._job(f"merge_shard/{model}/{shard}.tsv", record, content, seconds, 90.0)

    def converted(self, model: str, size: int, seconds: float, kind: str = "F16") -> None:
        record = f"{model}/gguf/{model}.unquantized.json"
        self._job(f"convert_to_gguf/{model}.tsv", record, {"size": size, "type": kind}, seconds, 90.0)

    def quantized(
        self, model: str, kind: str, parameters: int, seconds: float | str, load: float | str = 190.0
    ) -> None:
        content = {"parameters": parameters, "type": kind, "size": 1}
        record = f"{model}/gguf/{model}.{kind}.json"
        self._job(f"quantize/{model}.{kind}.tsv", record, content, seconds, load)

    def found(self) -> Any:
        return throughput(self.benchmarks, self.results)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_job_has_run(machine: Machine) -> None:
    one = estimate(machine.found(), "quantize", 10 * GB, "Q4_K_M")
    assert (one.seconds, one.basis) == (None, "no earlier job on this machine")


def test_the_start_does_not_grow_with_the_model(machine: Machine) -> None:
    for shard in range(1, 4):
        machine.merged("m", f"0000{shard}-of-00003", 4 * GB, 2 + 4 * 10)
    one = estimate(machine.found(), "merge_shard", 65 * GB)
    assert one.seconds == pytest.approx(2 + 65 * 10)
    assert one.basis == "by 3 earlier jobs on this machine"
    assert in_words(one.seconds) == "about 11 min"


def test_small_jobs_tell_of_small_jobs_only_and_do_not_disturb_large_ones(machine: Machine) -> None:
    machine.converted("demo", 7_000_000, 3.2)
    small = machine.found()
    assert estimate(small, "convert_to_gguf", 7_000_000, "F16").seconds == pytest.approx(3.2, abs=0.1)
    large = estimate(small, "convert_to_gguf", 65 * GB, "F16")
    assert large.seconds is None
    assert large.basis == "earlier jobs on this machine were too small to tell (the longest took 3 s)"
    machine.converted("real", 15 * GB, 93.2)
    assert estimate(machine.found(), "convert_to_gguf", 65 * GB, "F16").seconds == pytest.approx(3.2 + 65 * 6, rel=0.01)


def test_types_differ_and_the_one_that_ran_is_taken(machine: Machine) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 1 + 8 * 28)
    machine.quantized("b", "Q8_0", 2 * GB, 1 + 2 * 4.5)
    found = machine.found()
    assert estimate(found, "quantize", 32 * GB, "Q4_K_M").seconds == pytest.approx(1 + 32 * 28)
    assert estimate(found, "quantize", 32 * GB, "Q8_0").seconds == pytest.approx(1 + 32 * 4.5)


def test_a_type_that_has_not_run_is_scaled_from_the_largest_that_has(machine: Machine) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 1 + 8 * 28)
    machine.quantized("b", "Q8_0", 2 * GB, 1 + 2 * 100.0)
    one = estimate(machine.found(), "quantize", 8 * GB, "IQ4_XS")
    assert one.seconds == pytest.approx(1 + 8 * 28 * 160 / 56)
    assert one.basis == "by 1 earlier job on this machine of Q4_K_M, scaled to IQ4_XS by their usual costs"


def test_a_type_that_cannot_be_compared(machine: Machine) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 100.0)
    one = estimate(machine.found(), "quantize", 8 * GB, "IQ3_S")
    assert one.seconds is None
    assert "no earlier job of IQ3_S" in one.basis


def test_other_threads(machine: Machine) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 1 + 8 * 28, load=200.0)
    one = estimate(machine.found(), "quantize", 8 * GB, "Q4_K_M", threads=16)
    assert one.seconds == pytest.approx(1 + 8 * 28 / 8)
    assert one.basis.endswith("on 16 threads")


def test_merges_through_peft_are_another_kind(machine: Machine) -> None:
    machine.merged("plain", "00001-of-00001", 4 * GB, 42.0)
    machine.merged("loha", "00001-of-00001", 4 * GB, 402.0, kind="module + add")
    found = machine.found()
    assert estimate(found, "merge_shard", 4 * GB, "peft").seconds == pytest.approx(402.0)
    assert estimate(found, "merge_shard", 4 * GB, "plain").seconds == pytest.approx(42.0)
    assert merge_kind({}) == "plain"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda benchmark, record: benchmark.write_text(""),
        lambda benchmark, record: benchmark.write_text(HEADER),
        lambda benchmark, record: benchmark.write_text(HEADER + "NA\t-\n"),
        lambda benchmark, record: record.unlink(),
        lambda benchmark, record: record.write_text('{"parameters": 8'),
        lambda benchmark, record: record.write_text("[]"),
        lambda benchmark, record: record.write_text('{"type": "Q8_0"}'),
        lambda benchmark, record: record.write_text('{"type": "Q8_0", "parameters": null}'),
    ],
)
def test_what_cannot_be_read_counts_for_nothing(machine: Machine, spoil: Any) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 100.0)
    machine.quantized("b", "Q8_0", 8 * GB, 10.0)
    spoil(machine.benchmarks / "quantize/b.Q8_0.tsv", machine.results / "b/gguf/b.Q8_0.json")
    assert list(machine.found()) == [("quantize", "Q4_K_M")]


def test_a_load_that_was_not_measured(machine: Machine) -> None:
    machine.quantized("a", "Q4_K_M", 8 * GB, 100.0, load="NA")
    assert estimate(machine.found(), "quantize", 8 * GB, "Q4_K_M", threads=16).seconds == pytest.approx(100.0)


def test_a_model_with_points_in_its_name(machine: Machine) -> None:
    machine.quantized("qwen2.5-7b", "Q4_K_M", 8 * GB, 100.0)
    assert machine.found()["quantize", "Q4_K_M"].jobs == 1


def ghost() -> dict[str, Any]:
    types: dict[str, Any] = {name: {"bytes": 1} for name in QUANTIZATION_TYPES}
    return {
        "unquantized_bytes": 64 * GB,
        "parameters": 32 * GB,
        "outtype": "BF16",
        "types": types | {"TQ1_0": {"refused": "no"}},
    }


def test_the_times_of_a_build_are_a_file(machine: Machine, tmp_path: Path) -> None:
    machine.merged("m", "00001-of-00001", 4 * GB, 42.0)
    machine.converted("m", 4 * GB, 27.5)
    machine.quantized("m", "Q4_K_M", 2 * GB, 57.0)
    (tmp_path / "ghost.json").write_text(json.dumps(ghost()))
    arguments = ["--ghost", tmp_path / "ghost.json", "--benchmarks", machine.benchmarks, "--results", machine.results]
    estimate_times.main([*map(str, arguments), "--output", str(tmp_path / "times.json")])
    times = read_record(tmp_path / "times.json")
    assert times == times_of_build(ghost(), machine.found())
    assert [one["job"] for one in times["shared"]] == ["merge_shard", "convert_to_gguf"]
    assert times["shared"][0]["seconds"] == pytest.approx(2 + 64 * 10)
    assert times["shared"][1]["seconds"] == pytest.approx(3.5 + 64 * 6 * 7 / 6)
    assert times["types"]["Q4_K_M"]["seconds"] == pytest.approx(1 + 32 * 28)
    assert times["types"]["IQ2_M"]["seconds"] is None
    assert times["types"].keys() == QUANTIZATION_TYPES.keys() - {"TQ1_0"}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (41.6, "about 42 s"), (95, "about 2 min"), (960, "about 16 min"), (9000, "about 2.5 h")],
)
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_the_newest_jobs_are_looked_at(machine: Machine) -> None:
    """A machine that has become faster is judged by what it takes now, and thousands of benchmarks are not read."""
    for number in range(NEWEST + 5):
        machine.quantized(f"m{number}", "Q8_0", 8 * GB, 500.0 if number < 5 else 100.0)
        os.utime(machine.benchmarks / f"quantize/m{number}.Q8_0.tsv", (number, number))
    found = machine.found()["quantize", "Q8_0"]
    assert (found.jobs, found.longest) == (NEWEST, 100.0)
