"""bitsandbytes checkpoints: a branch of its own behind the merge, and what each edit of a finished build reruns of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build, save_small_adapter
from safetensors.torch import load_file, save_file

ONE_CHECKPOINT = {"plan_bitsandbytes": 1, "quantize_bitsandbytes": 3, "write_bitsandbytes_files": 1}
OF_CHECKPOINTS = (*ONE_CHECKPOINT, "release_merged")


def asked(build: Build) -> dict[str, Any]:
    """Return what the configuration says of bitsandbytes, to be edited."""
    value: dict[str, Any] = build.model()["bitsandbytes"]
    return value


def of_checkpoints(jobs: dict[str, int]) -> dict[str, int]:
    return {rule: count for rule, count in jobs.items() if rule in OF_CHECKPOINTS}


@pytest.fixture(scope="module")
def finished_checkpoints(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build to which the checkpoints were added: of its jobs none is made again."""
    folder = tmp_path_factory.mktemp("bitsandbytes") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished.config)))
    build.model()["bitsandbytes"] = {"types": ["nf4"]}
    assert build.planned() == {"check_inputs": 1, **ONE_CHECKPOINT}
    asked(build)["types"].append("int8")
    both = {rule: 2 * count for rule, count in ONE_CHECKPOINT.items()}
    assert build.planned() == {"check_inputs": 1, **both}
    assert build.planned("bitsandbytes") == {"check_inputs": 1, **both, "bitsandbytes": 1}
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def checkpoints(finished_checkpoints: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, with its times, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(finished_checkpoints.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(finished_checkpoints.config)))
    shutil.rmtree(folder)


def test_what_is_there(checkpoints: Build) -> None:
    assert checkpoints.planned() == {}
    for precision in ("nf4", "int8"):
        folder = checkpoints.folder / "results/small/bitsandbytes" / precision
        record = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
        assert record["files"].keys() == {file.name for file in folder.iterdir()}
        assert len(list(folder.glob("model-*-of-00003.safetensors"))) == 3


def test_the_adapter_retrained(checkpoints: Build) -> None:
    save_small_adapter(checkpoints.folder / "base", checkpoints.folder / "adapter", seed=2)
    jobs = checkpoints.planned()
    assert jobs["merge_shard"] == 3
    assert of_checkpoints(jobs) == {"quantize_bitsandbytes": 6, "write_bitsandbytes_files": 2}


def test_one_shard_of_the_base_replaced(checkpoints: Build) -> None:
    file = checkpoints.folder / "base/model-00002-of-00003.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    jobs = checkpoints.planned()
    assert jobs["merge_shard"] == 1
    assert of_checkpoints(jobs) == {"quantize_bitsandbytes": 2, "write_bitsandbytes_files": 2}


def test_skipped_modules_are_of_int8_alone(checkpoints: Build) -> None:
    asked(checkpoints)["skip_modules"] = ["lm_head", "down_proj"]
    assert checkpoints.planned() == ONE_CHECKPOINT
    plans = checkpoints.folder / "results/small/bitsandbytes_records"
    checkpoints.run("--cores", "2", str(plans.relative_to(checkpoints.folder) / "int8/plan.json"))
    quantized = [
        sum(one["quantized"] for one in json.loads((plans / name).read_text(encoding="utf-8"))["treatments"].values())
        for name in ("nf4/plan.json", "int8/plan.json")
    ]
    assert quantized == [14, 12]


def test_the_compute_dtype_quantizes_nothing(checkpoints: Build) -> None:
    asked(checkpoints)["compute_dtype"] = "float16"
    assert checkpoints.planned() == {"write_bitsandbytes_files": 1}


def test_one_checkpoint_less(checkpoints: Build) -> None:
    asked(checkpoints)["types"] = ["int8"]
    assert checkpoints.planned() == {"check_inputs": 1}


@pytest.mark.parametrize("name", ["nf4/model-00002-of-00003.safetensors", "nf4/config.json"])
def test_a_file_removed(checkpoints: Build, name: str) -> None:
    (checkpoints.folder / "results/small/bitsandbytes" / name).unlink()
    quantized = {"quantize_bitsandbytes": 1} if name.endswith("safetensors") else {}
    assert checkpoints.planned() == {**quantized, "write_bitsandbytes_files": 1}


def test_touched_but_not_changed(checkpoints: Build) -> None:
    files = [*checkpoints.folder.glob("base/*"), *checkpoints.folder.glob("results/small/merged/*")]
    files += checkpoints.folder.glob("results/small/bitsandbytes/*/*.safetensors")
    for file in files:
        later = file.stat().st_mtime_ns + 10**10
        os.utime(file, ns=(later, later))
    assert len(files) > 12
    assert checkpoints.planned() == {}


def test_what_cannot_be_is_refused_before_anything_is_merged(checkpoints: Build) -> None:
    shutil.rmtree(checkpoints.folder / "results")
    asked(checkpoints)["skip_modules"] = ["lm_head", "dwn_proj"]
    checkpoints.write_config()
    said = checkpoints.run_to_failure("--cores", "2", "all")
    assert (
        "models.small.bitsandbytes.skip_modules: 'dwn_proj' names no linear layer of the model. Did you mean down_proj"
        in said
    )
    assert not list(checkpoints.folder.glob("results/small/merged/*.safetensors"))


@pytest.mark.campaign
def test_merged_weights_that_are_not_kept(checkpoints: Build) -> None:
    """They are merged again for one more quantization, and no checkpoint is quantized again by that."""
    checkpoints.config["keep"] = {"merged": False, "unquantized": False}
    asked(checkpoints)["types"] = ["int8"]
    jobs = checkpoints.planned()
    assert of_checkpoints(jobs) == {"release_merged": 1}
    assert "merge_shard" not in jobs
    checkpoints.run("--cores", "2", "all")
    assert not list(checkpoints.folder.glob("results/small/merged/*.safetensors"))
    assert checkpoints.planned() == {}
    before = {file: file.stat().st_mtime_ns for file in checkpoints.folder.glob("results/small/bitsandbytes/**/*.*")}
    checkpoints.model()["quantizations"].append("Q5_K_M")
    jobs = checkpoints.planned()
    assert (jobs["merge_shard"], jobs["quantize"]) == (3, 1)
    assert of_checkpoints(jobs) == {"release_merged": 1}
    checkpoints.run("--cores", "2", "all")
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert checkpoints.planned() == {}
    # A job that was done, and that another change starts: it has its shard again.
    config = checkpoints.folder / "base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"note": 1}), encoding="utf-8")
    jobs = checkpoints.planned("bitsandbytes")
    assert of_checkpoints(jobs) == {**ONE_CHECKPOINT, "release_merged": 1}
    checkpoints.run("--cores", "2", "bitsandbytes")
    assert not list(checkpoints.folder.glob("results/small/merged/*.safetensors"))
    assert checkpoints.planned("bitsandbytes") == {}
    asked(checkpoints)["skip_modules"] = ["lm_head", "down_proj"]
    jobs = checkpoints.planned("bitsandbytes")
    assert of_checkpoints(jobs) == {**ONE_CHECKPOINT, "release_merged": 1}
    assert jobs["merge_shard"] == 3


def test_measured_where_merged_weights_are_not_kept(checkpoints: Build) -> None:
    """What measures a checkpoint has the merged shards once more, and they are gone afterwards; a new text measures alone."""
    text = checkpoints.folder / "evaluation.txt"
    text.write_text("".join(f"Road {number} has a radius of {number * 7} m.\n" for number in range(400)), "utf-8")
    checkpoints.config["keep"] = {"merged": False, "unquantized": False}
    checkpoints.model()["quality"] = {
        "text": ["evaluation.txt"],
        "context": 128,
        "chunks": 8,
        "base": False,
        "speed": False,
    }
    checkpoints.model()["quantizations"] = ["Q8_0"]
    asked(checkpoints).update(types=["nf4"], evaluate=True)
    jobs = checkpoints.planned()
    assert jobs["evaluate_bitsandbytes"] == 1
    assert not {"merge_shard", "quantize_bitsandbytes"} & jobs.keys(), (
        "they are still there from the time they were kept"
    )
    checkpoints.run("--cores", "2", "all")
    assert not list(checkpoints.folder.glob("results/small/merged/*.safetensors"))
    assert checkpoints.planned() == {}
    (row,) = json.loads((checkpoints.folder / "results/small/quality.json").read_text(encoding="utf-8"))["checkpoints"]
    assert row["type"] == "nf4"
    assert row["kld_mean"] > 0
    with text.open("a", encoding="utf-8") as file:
        file.write("One road more.\n")
    jobs = checkpoints.planned()
    assert (jobs["merge_shard"], jobs["evaluate_bitsandbytes"]) == (3, 1)
    assert not {"quantize", "quantize_bitsandbytes", "register"} & jobs.keys()
