"""After a finished build that is measured, each single edit measures, quantizes and registers exactly what it must."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dag_build import Build

EVALUATION = "設計速度80km/hの道路の最小曲線半径は280mである。 The clothoid joins a straight and a curve.\n"
CALIBRATION = "縦断曲線は勾配の変化点で衝撃を和らげる。 Gutters carry the water of the road away.\n"
SUMMED_UP = {"summarize_quality": 1, "judge_quality": 2}
MEASURED = {"evaluate_reference": 1, "release_logits": 3, **SUMMED_UP}
"""Both quantizations and the base need the log-probabilities."""
ONE_MORE = {
    "check_inputs": 1,
    "quantize": 1,
    "evaluate_quality": 1,
    "measure_speed": 1,
    **MEASURED,
    "release_logits": 4,
}


@pytest.fixture(scope="module")
def measured_build(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The finished build, calibrated and measured. Tests that edit take a copy."""
    folder = tmp_path_factory.mktemp("measured") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished.config)))
    (folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    (folder / "calibration.txt").write_text(CALIBRATION * 40, encoding="utf-8")
    build.model()["imatrix"] = {"text": ["calibration.txt"], "context": 128}
    build.model()["quality"] = {"text": ["evaluation.txt"], "context": 128, "chunks": 8, "max_kld_mean": 5.0}
    build.write_config()
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def measured(measured_build: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, with its times, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(measured_build.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(measured_build.config)))
    shutil.rmtree(folder)


def test_nothing(measured: Build) -> None:
    assert measured.planned() == {}


def test_the_log_probabilities_are_gone(measured: Build) -> None:
    assert (measured.folder / "results/small/quality/reference.json").exists()
    assert not list(measured.folder.glob("results/**/*.kld"))


def test_text_to_measure_on_starts_measuring_and_nothing_else(finished: Build, build: Build) -> None:
    (build.folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    build.model()["quality"] = {"text": ["evaluation.txt"], "context": 128}
    planned = build.planned()
    once = ("plan_merge", "write_model_files", "write_merge_report", "convert_to_gguf", "record_conversion")
    assert planned == dict.fromkeys(once, 1) | {
        "merge_shard": 3,
        "check_inputs": 2,
        "prepare_text": 1,
        "evaluate_reference": 1,
        "evaluate_quality": 3,
        "measure_speed": 2,
        "release_logits": 3,
        "summarize_quality": 1,
    }


def test_without_the_base_nothing_is_built_of_it(build: Build) -> None:
    (build.folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    build.model()["quality"] = {"text": ["evaluation.txt"], "context": 128, "base": False, "speed": False}
    assert build.planned() == {
        "check_inputs": 1,
        "prepare_text": 1,
        "evaluate_reference": 1,
        "evaluate_quality": 2,
        "release_logits": 2,
        "summarize_quality": 1,
    }


def test_a_quantization_added(measured: Build) -> None:
    """The log-probabilities are made again, since they are not kept; none of the others is measured again."""
    measured.model()["quantizations"].append("Q5_K_M")
    assert measured.planned() == ONE_MORE | {"judge_quality": 3, "write_modelfile": 1, "register": 1}
    before = measured_at(measured)
    measured.run("--cores", "2", "all")
    after = measured_at(measured)
    assert after.keys() - before.keys() == {"Q5_K_M.json", "Q5_K_M.speed.json", "Q5_K_M.verdict.json"}
    same = {name for name in before if before[name] == after[name]}
    assert {"Q4_K_M.json", "Q8_0.json", "base.json", "Q4_K_M.speed.json", "evaluation.json"} <= same
    assert measured.planned() == {}


def measured_at(build: Build) -> dict[str, int]:
    """Return the times of what was measured."""
    return {file.name: file.stat().st_mtime_ns for file in (build.folder / "results/small/quality").glob("*.json")}


def test_a_type_to_compare_added(measured: Build) -> None:
    measured.model()["quality"]["compare"] = ["Q2_K"]
    assert measured.planned() == ONE_MORE


def test_something_less_measures_nothing(measured: Build) -> None:
    measured.model()["quantizations"].remove("Q8_0")
    assert measured.planned() == {"check_inputs": 1, "summarize_quality": 1, "judge_quality": 1}
    measured.model()["quality"]["base"] = False
    assert measured.planned() == {"check_inputs": 1, "summarize_quality": 1, "judge_quality": 1}


def test_another_llama_perplexity_measures_again(measured: Build, programs: Path, tmp_path: Path) -> None:
    """Also where the log-probabilities have to be made again for it."""
    other = tmp_path / "other"
    shutil.copytree(programs, other, symlinks=True)
    with (other / "bin/llama-perplexity").open("ab") as program:
        program.write(b"\0")
    measured.config["tools"]["llama_cpp"] = str(other)
    planned = measured.planned("--rerun-triggers", "mtime", "code", "params")
    assert planned == {"check_inputs": 2, "evaluate_quality": 3, **MEASURED}


def test_a_limit_and_another_store_at_once(measured: Build) -> None:
    """Judging again hides no registration that is due."""
    measured.model()["quality"]["max_kld_mean"] = 4.0
    measured.config["ollama"]["store"] = "results/other-store"
    assert measured.planned() == {"check_inputs": 2, "register": 2, "check_template": 1, **SUMMED_UP}


def test_a_limit_and_something_behind_the_registration_at_once(measured: Build) -> None:
    """Judging again hides nothing that is due behind the registration."""
    measured.model()["quality"]["max_kld_mean"] = 4.0
    measured.model()["ollama"]["template_differs"] = "warn"
    assert measured.planned() == SUMMED_UP | {"check_template": 1}


@pytest.mark.parametrize("program", ["llama-imatrix", "llama-perplexity", "llama-bench"])
def test_a_folder_without_a_program_to_measure_with(
    measured: Build, programs: Path, tmp_path: Path, program: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(programs, other, symlinks=True)
    (other / "bin" / program).unlink()
    measured.config["tools"]["llama_cpp"] = str(other)
    measured.write_config()
    said = measured.run_to_failure("--cores", "1", "all")
    assert f"tools.llama_cpp: {program} is not in" in said
    assert "Traceback" not in said


def test_overlapping_texts_are_not_summed_up(measured: Build) -> None:
    text = (measured.folder / "calibration.txt").read_text(encoding="utf-8")
    with (measured.folder / "evaluation.txt").open("a", encoding="utf-8") as file:
        file.write(text)
    measured.write_config()
    said = measured.run_to_failure("--cores", "2", "--keep-going", "all")
    assert "at most 5 % may be in both" in said
    assert measured.planned()["judge_quality"] == 2


def test_the_evaluation_text(measured: Build) -> None:
    """It measures again and quantizes nothing."""
    (measured.folder / "evaluation.txt").write_text(EVALUATION * 41, encoding="utf-8")
    assert measured.planned() == {"check_overlap": 1, "prepare_text": 1, "evaluate_quality": 3, **MEASURED}


def test_the_calibration_text(measured: Build) -> None:
    """It quantizes again what a matrix changes, which Q8_0 is not."""
    (measured.folder / "calibration.txt").write_text(CALIBRATION * 41, encoding="utf-8")
    once = ("check_overlap", "prepare_text", "compute_imatrix", "quantize", "evaluate_quality", "measure_speed")
    assert measured.planned() == dict.fromkeys((*once, "register", "check_template"), 1) | MEASURED


def test_a_touched_text(measured: Build) -> None:
    for name in ("evaluation.txt", "calibration.txt"):
        (measured.folder / name).touch()
    assert measured.planned() == {}


def test_a_limit(measured: Build) -> None:
    """It judges again: no model is run, none registered again."""
    measured.model()["quality"]["max_kld_mean"] = 4.0
    assert measured.planned() == SUMMED_UP


def test_a_limit_between_two_types_registers_one_of_them(measured: Build) -> None:
    """The one beyond it keeps its GGUF; the message says by how much it fails, and what would pass."""
    found = json.loads((measured.folder / "results/small/quality.json").read_text(encoding="utf-8"))
    kld = {row["type"]: row["kld_mean"] for row in found["rows"]}
    assert kld["Q8_0"] < kld["Q4_K_M"]
    shutil.rmtree(measured.folder / "results/small/ollama")
    shutil.rmtree(measured.folder / "results/ollama-store")
    measured.model()["quality"]["max_kld_mean"] = limit = (kld["Q8_0"] + kld["Q4_K_M"]) / 2
    measured.write_config()
    done = measured.run_to_failure("--cores", "2", "--keep-going", "all")
    registered = measured.folder / "results/small/ollama"
    assert (registered / "Q8_0/registered.json").exists()
    assert not (registered / "Q4_K_M/registered.json").exists()
    assert (measured.folder / "results/small/gguf/small.Q4_K_M.gguf").exists()
    end = done[done.rindex("judge_quality failed") :]
    assert "max_kld_mean" in end
    assert f"{limit:.2g}"[:4] in end
    assert "Q8_0" in end
    assert "quality.svg" in end


def test_a_warning_instead_of_a_stop(measured: Build) -> None:
    """Nothing waits for a verdict any more, so what is registered is so on other grounds."""
    measured.model()["quality"] |= {"on_fail": "warn", "max_kld_mean": 0.0}
    assert measured.planned() == {"summarize_quality": 1, "register": 2}
    said = measured.run("--cores", "2", "all")
    assert "max_kld_mean" in said[said.index("steps (100%) done") :]


def test_a_system_prompt_measures_nothing(measured: Build) -> None:
    measured.model()["ollama"]["system"] = "Answer briefly."
    assert measured.planned() == {"write_modelfile": 2, "register": 2}


def test_a_measurement_that_is_forced(measured: Build) -> None:
    """Also one of a reference whose words stay as they are."""
    forced = ("--forcerun", "evaluate_quality", "--", "all")
    assert measured.planned(*forced) == {"evaluate_quality": 3, **MEASURED}
    before = measured_at(measured)
    measured.run("--cores", "2", *forced)
    after = measured_at(measured)
    assert all(before[f"{name}.json"] != after[f"{name}.json"] for name in ("Q4_K_M", "Q8_0", "base"))
    assert measured.planned() == {}


def test_a_base_that_is_asked_for_where_there_is_none(build: Build) -> None:
    (build.folder / "evaluation.txt").write_text(EVALUATION * 40, encoding="utf-8")
    build.model()["quality"] = {"text": ["evaluation.txt"], "context": 128, "base": False}
    build.write_config()
    said = build.run_to_failure("-n", "results/small/quality/base.json")
    assert "models.small.quality.base is false" in said
    assert "None" not in said


def test_speed_is_measured_alone(measured: Build) -> None:
    """All cores are taken, whatever is used of them."""
    measured.config["tools"]["threads"] = 1
    measured.write_config()
    assert measured.planned() == {}
    said = measured.run("-n", "-p", "--cores", "2", "--forcerun", "measure_speed", "--", "quality")
    assert said.count("--threads $((2 < 1 ? 2 : 1))") == 2
