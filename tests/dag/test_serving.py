"""Files to serve a model with vLLM or TGI: made where they are asked for, and made anew for what they depend on alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dag_build import Build

FILES = ("vllm.yaml", "compose.yaml", "tokenizer_config.json", "serving.json")
BOTH = {"write_serving_files": 2}


def record(build: Build, checkpoint: str) -> dict[str, Any]:
    text = (build.folder / f"results/small/serve/{checkpoint}/serving.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def made(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build whose files to serve it were written."""
    folder = tmp_path_factory.mktemp("serving") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished.config)))
    build.model()["serving"] = {"checkpoints": ["merged", "adapter"]}
    assert build.planned() == BOTH | {"check_inputs": 1}
    build.write_config()
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def serving(made: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(made.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(made.config)))
    shutil.rmtree(folder)


def test_they_are_there_and_name_what_is_there(serving: Build) -> None:
    for checkpoint in ("merged", "adapter"):
        folder = serving.folder / "results/small/serve" / checkpoint
        assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
        arguments = yaml.safe_load((folder / "vllm.yaml").read_text(encoding="utf-8"))
        assert (serving.folder / arguments["model"] / "model.safetensors.index.json").is_file()
        for service in yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))["services"].values():
            for volume in service["volumes"]:
                assert (folder / volume["source"]).exists()
        for argument in record(serving, checkpoint)["tgi"]["arguments"]:
            if "-path=" in argument or "-id=" in argument:
                assert (serving.folder / argument.partition("=")[2]).exists()
    (module,) = record(serving, "adapter")["vllm"]["arguments"]["lora-modules"]
    assert (serving.folder / json.loads(module)["path"] / "adapter_config.json").is_file()
    assert serving.planned() == {}


def test_a_temperature_reaches_them_and_no_weight(serving: Build) -> None:
    serving.model()["ollama"]["parameters"]["temperature"] = 0.5
    assert serving.planned() == BOTH | {"write_modelfile": 2, "register": 2}
    serving.write_config()
    serving.run("--cores", "2", "serving")
    for checkpoint in ("merged", "adapter"):
        assert record(serving, checkpoint)["vllm"]["arguments"]["override-generation-config"] == {"temperature": 0.5}


def test_what_reaches_them_alone(serving: Build) -> None:
    serving.model()["serving"]["port"] = 9000
    assert serving.planned() == BOTH
    # The adapter is no longer looked at for vLLM.
    serving.model()["serving"] = {"checkpoints": ["merged"]}
    assert serving.planned() == {"check_inputs": 1}


def test_another_system_prompt_does_not_reach_them(serving: Build) -> None:
    serving.model()["ollama"]["system"] = "Another."
    assert "write_serving_files" not in serving.planned()


def test_other_hardware_reaches_them(serving: Build) -> None:
    serving.config["hardware"]["gpus"] = [{"name": "L4", "memory_gib": 24}] * 2
    serving.write_config()
    serving.run("--cores", "2", "serving")
    assert record(serving, "merged")["vllm"]["arguments"]["tensor-parallel-size"] == 2
    assert serving.planned("serving") == {}


def test_a_deleted_shard_is_merged_again_where_it_is_served(serving: Build) -> None:
    (serving.folder / "results/small/merged/model-00002-of-00003.safetensors").unlink()
    assert serving.planned("serving") == {"merge_shard": 1, "serving": 1}


def test_serving_alone_makes_no_gguf(serving: Build) -> None:
    shutil.rmtree(serving.folder / "results")
    planned = serving.planned("serving")
    assert planned["merge_shard"] == 3
    assert planned["write_serving_files"] == 2
    assert not planned.keys() & {"convert_to_gguf", "quantize", "register"}


def test_beside_the_base_nothing_is_merged(serving: Build) -> None:
    shutil.rmtree(serving.folder / "results")
    serving.model()["serve"] = "adapter"
    serving.model()["serving"] = {}
    planned = serving.planned("serving")
    assert planned["write_serving_files"] == 1
    assert "merge_shard" not in planned
    serving.write_config()
    serving.run("--cores", "2", "serving")
    assert record(serving, "adapter")["vllm"]["arguments"]["served-model-name"] == ["small-base"]
    assert not list((serving.folder / "results/small/merged").glob("*.safetensors"))


def test_an_adapter_that_vllm_does_not_take_is_refused_before_anything_heavy(serving: Build) -> None:
    shutil.rmtree(serving.folder / "results")
    file = serving.folder / "adapter/adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"init_lora_weights": "pissa"}), encoding="utf-8")
    serving.write_config()
    said = serving.run_to_failure("--cores", "1", "all")
    assert "check_inputs failed" in said
    assert "cannot serve the adapter adapter beside its base" in said
    assert "init_lora_weights is 'pissa'" in said
    assert not (serving.folder / "results/small/merge_plan.json").exists()


def test_what_is_not_kept_is_not_served(serving: Build) -> None:
    serving.config["keep"] = {"merged": False}
    serving.write_config()
    said = serving.run_to_failure("-n", "all")
    assert "models.small.serving.checkpoints: merged cannot be served: `keep.merged: false` removes" in said


def test_what_does_not_fit_is_said_at_the_end(serving: Build) -> None:
    serving.config["hardware"]["gpus"] = [{"name": "tiny", "memory_gib": 1.6}]
    serving.write_config()
    said = serving.run("--cores", "2", "serving")
    assert "small, warning of its serving: served from merged:" in said
    assert "DO NOT FIT" in said
