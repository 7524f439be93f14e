"""Where merged weights and the unquantized GGUF are not kept, they are made again for what is new and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dag_build import Build, save_small_adapter

EVALUATION = "設計速度80km/hの道路の最小曲線半径は280mである。 The clothoid joins a straight and a curve.\n"
CALIBRATION = "縦断曲線は勾配の変化点で衝撃を和らげる。 Gutters carry the water of the road away.\n"
MADE_AGAIN = {"merge_shard": 3, "write_merge_report": 1, "convert_to_gguf": 1}
MEASURED_AGAIN = {"evaluate_reference": 1, "summarize_quality": 1, "judge_quality": 2, "release_logits": 3}
USERS = {"release_unquantized": 6}
"""Two types and the matrix, and three measurements."""


@pytest.fixture(scope="module")
def passing_build(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished and measured build that keeps no intermediates. Tests that edit take a copy."""
    folder = tmp_path_factory.mktemp("passing") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("results", ".snakemake"))
    build = Build(folder, json.loads(json.dumps(finished.config)))
    (folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    (folder / "calibration.txt").write_text(CALIBRATION * 40, encoding="utf-8")
    build.config["keep"] = {"merged": False, "unquantized": False}
    build.model()["imatrix"] = {"text": ["calibration.txt"], "context": 128}
    build.model()["quality"] = {"text": ["evaluation.txt"], "context": 128, "chunks": 8, "max_kld_mean": 5.0}
    build.write_config()
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def passing(passing_build: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, with its times, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(passing_build.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(passing_build.config)))
    shutil.rmtree(folder)


def times(build: Build) -> dict[str, int]:
    """Return the times of what was made of the unquantized GGUF, and of what is registered."""
    results = build.folder / "results/small"
    found = [*results.glob("gguf/*"), *results.glob("quality/*.json"), *results.glob("ollama/**/*.json")]
    return {str(file.relative_to(results)): file.stat().st_mtime_ns for file in found}


def intermediates(build: Build) -> list[Path]:
    results = build.folder / "results"
    found = [*results.glob("*/merged/*.safetensors"), *results.glob("*/gguf/*.unquantized.gguf")]
    return [*found, *results.glob("*/quality/*.kld")]


def test_they_go_and_are_not_missed(passing: Build) -> None:
    assert intermediates(passing) == []
    assert passing.planned() == {}
    passing.model()["ollama"]["system"] = "Answer briefly."
    assert passing.planned() == {"write_modelfile": 2, "register": 2}


def test_one_more_quantization_quantizes_and_measures_none_of_the_others(passing: Build) -> None:
    passing.model()["quantizations"].append("Q5_K_M")
    one = ("check_inputs", "quantize", "evaluate_quality", "measure_speed", "write_modelfile", "register")
    more = {"judge_quality": 3, "release_logits": 4, "release_unquantized": 8}
    assert passing.planned() == MADE_AGAIN | MEASURED_AGAIN | dict.fromkeys(one, 1) | more
    before = times(passing)
    passing.run("--cores", "2", "all")
    after = times(passing)
    again = {name for name in before if before[name] != after[name] and not name.endswith(".released")}
    assert again == {
        "gguf/small.conversion.json",
        "quality/reference.json",
        "quality/Q4_K_M.verdict.json",
        "quality/Q8_0.verdict.json",
    }
    assert intermediates(passing) == []
    assert passing.planned() == {}


def test_the_text_to_measure_on_quantizes_nothing(passing: Build) -> None:
    """The base is measured, too, so it is made again as well."""
    (passing.folder / "evaluation.txt").write_text(EVALUATION * 41, encoding="utf-8")
    base = {rule: 2 * count for rule, count in MADE_AGAIN.items()}
    once = {"check_overlap": 1, "prepare_text": 1, "evaluate_quality": 3}
    assert passing.planned() == base | MEASURED_AGAIN | once | {"release_unquantized": 7}
    before = times(passing)
    passing.run("--cores", "2", "all")
    after = times(passing)
    assert {name for name in before if before[name] == after[name]} >= {
        "gguf/small.Q4_K_M.gguf",
        "gguf/small.Q8_0.json",
        "gguf/small.imatrix.gguf",
        "ollama/Q8_0/registered.json",
    }
    assert before["quality/Q8_0.json"] != after["quality/Q8_0.json"]
    assert passing.planned() == {}


def test_the_text_to_calibrate_on_quantizes_what_a_matrix_changes(passing: Build) -> None:
    (passing.folder / "calibration.txt").write_text(CALIBRATION * 41, encoding="utf-8")
    once = ("check_overlap", "prepare_text", "compute_imatrix", "quantize", "evaluate_quality", "measure_speed")
    others = dict.fromkeys((*once, "register", "check_template"), 1)
    assert passing.planned() == MADE_AGAIN | MEASURED_AGAIN | others | USERS
    passing.run("--cores", "2", "all")
    assert intermediates(passing) == []
    assert passing.planned() == {}


def test_another_llama_quantize_quantizes_all(passing: Build, programs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(programs, other, symlinks=True)
    with (other / "bin/llama-quantize").open("ab") as program:
        program.write(b"\0")
    passing.config["tools"]["llama_cpp"] = str(other)
    planned = passing.planned("--rerun-triggers", "mtime", "code", "params")
    assert (planned["convert_to_gguf"], planned["quantize"], planned["evaluate_quality"]) == (1, 2, 2)


def test_without_the_matrix_what_used_it_is_quantized_again(passing: Build) -> None:
    del passing.model()["imatrix"]
    planned = passing.planned()
    assert (planned["convert_to_gguf"], planned["quantize"], planned["evaluate_quality"]) == (1, 1, 1)


def test_another_adapter_makes_everything_anew(passing: Build) -> None:
    save_small_adapter(passing.folder / "base", passing.folder / "adapter", seed=2)
    planned = passing.planned()
    assert planned["record_conversion"] == 1
    assert (planned["quantize"], planned["compute_imatrix"], planned["evaluate_quality"]) == (2, 1, 3)
    assert planned["register"] == 2
    before = json.loads((passing.folder / "results/small/gguf/small.Q8_0.json").read_text(encoding="utf-8"))
    passing.run("--cores", "2", "all")
    after = json.loads((passing.folder / "results/small/gguf/small.Q8_0.json").read_text(encoding="utf-8"))
    assert before["sha256"] != after["sha256"]
    assert passing.planned() == {}


def test_a_single_file_that_is_new(passing: Build) -> None:
    passing.model()["quantizations"].append("Q5_K_M")
    passing.write_config()
    wanted = "results/small/gguf/small.Q5_K_M.gguf"
    assert passing.planned(wanted) == {"merge_shard": 3, "convert_to_gguf": 1, "quantize": 1}
    passing.run("--cores", "2", wanted)
    assert (passing.folder / wanted).exists()
    assert intermediates(passing) == []


def test_a_forced_quantization(passing: Build) -> None:
    """It is made again by name of the rule; a single file that is there is not, and says what to do."""
    forced = ("--forcerun", "quantize", "--", "gguf")
    planned = passing.planned(*forced)
    assert (planned["convert_to_gguf"], planned["quantize"]) == (1, 2)
    before = times(passing)
    passing.run("--cores", "2", *forced)
    after = times(passing)
    assert all(before[f"gguf/small.{one}.gguf"] != after[f"gguf/small.{one}.gguf"] for one in ("Q4_K_M", "Q8_0"))
    wanted = "results/small/gguf/small.Q8_0.gguf"
    said = passing.run_to_failure("--cores", "2", "--force", wanted)
    assert "With keep.unquantized: false it is made again for a stage of the workflow" in said
    assert (passing.folder / "results/small/gguf/small.Q4_K_M.gguf").exists()


def test_keeping_them_or_not_starts_nothing_that_takes_long(build: Build) -> None:
    build.config["keep"] = {"merged": False, "unquantized": False}
    assert build.planned() == {"check_inputs": 1, "release_unquantized": 2}
    build.run("--cores", "2", "all")
    assert not (build.folder / "results/small/gguf/small.unquantized.gguf").exists()
    assert build.planned() == {}
    build.config["keep"] = {"merged": True, "unquantized": True}
    assert build.planned() == {"check_inputs": 1}
