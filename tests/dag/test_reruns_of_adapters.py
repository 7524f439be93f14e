"""Models that are served as adapters: what they build, and what each edit of a finished build reruns."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dag_build import Build, save_small_adapter
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM

PER_MODEL = (
    "check_inputs",
    "plan_merge",
    "write_model_files",
    "measure_ghost",
    "plan_memory",
    "draw_plan",
    "choose_template",
)
REGISTRATION = {"write_modelfile": 1, "register": 1}
OF_AN_ADAPTER = {**dict.fromkeys(PER_MODEL, 1), "convert_adapter_to_gguf": 1, **REGISTRATION, "check_template": 1}
OF_THE_BASE = {
    "check_inputs": 1, "plan_merge": 1, "merge_shard": 3, "write_merge_report": 1, "write_model_files": 1, "convert_to_gguf": 1,
    "record_conversion": 1, "quantize": 1,
}  # fmt: skip


def added(*jobs: dict[str, int]) -> dict[str, int]:
    return {rule: sum(one.get(rule, 0) for one in jobs) for one in jobs for rule in one}


@pytest.fixture(scope="session")
def finished_adapter(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build of one model that is served as an adapter."""
    folder = tmp_path_factory.mktemp("adapter") / "work"
    for name in ("base", "adapter"):
        shutil.copytree(finished.folder / name, folder / name)
    save_small_adapter(folder / "base", folder / "second", seed=7)
    config = json.loads(json.dumps(finished.config))
    config["models"]["small"] |= {"serve": "adapter", "quantizations": ["Q8_0"]}
    build = Build(folder, config)
    assert build.planned("all") == added(OF_AN_ADAPTER, OF_THE_BASE)
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def adapter(finished_adapter: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(finished_adapter.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(finished_adapter.config)))
    shutil.rmtree(folder)


def test_what_is_there(adapter: Build) -> None:
    """Nothing is merged with the adapter, and the store has one manifest: of the base's GGUF and the adapter."""
    assert adapter.planned() == {}
    assert not list((adapter.folder / "results/small").rglob("*.safetensors"))
    ggufs = {file.name for file in adapter.folder.glob("results/*/gguf/*.gguf")}
    assert ggufs == {"small.adapter.gguf", "base.unquantized.gguf", "base.Q8_0.gguf"}
    (file,) = adapter.folder.glob("results/ollama-store/manifests/*/*/*/*")
    layers = [layer["mediaType"].rpartition(".")[2] for layer in json.loads(file.read_text("utf-8"))["layers"]]
    assert layers == ["model", "adapter", "template", "system", "params"]
    text = (adapter.folder / "results/small/ollama/Q8_0/Modelfile").read_text("utf-8")
    assert "FROM ../../../base/gguf/base.Q8_0.gguf\nADAPTER ../../gguf/small.adapter.gguf\n" in text


def test_a_second_adapter_on_the_base(adapter: Build) -> None:
    """Its own small jobs: neither a merge nor a quantization."""
    # Through JSON, so that the two models share no object: as an alias it would be changed for both.
    adapter.config["models"]["other"] = json.loads(json.dumps(adapter.model())) | {"adapter": "second"}
    assert adapter.planned() == OF_AN_ADAPTER
    adapter.run("--cores", "2", "all")
    manifests = adapter.folder.glob("results/ollama-store/manifests/*/*/*/*")
    layers = {file.parent.name: json.loads(file.read_text("utf-8"))["layers"] for file in manifests}
    assert sorted(layers) == ["other", "small"]
    assert layers["other"][0] == layers["small"][0]
    assert layers["other"][1]["digest"] != layers["small"][1]["digest"]


def test_another_quantization(adapter: Build) -> None:
    adapter.model()["quantizations"].append("F16")
    # Of the base and of the model.
    assert adapter.planned() == {"check_inputs": 2, "quantize": 1, **REGISTRATION}


def test_the_plan_chooses_the_type(adapter: Build) -> None:
    """Of 24 GiB a small model takes F16, which the base is then made in; afterwards nothing is to be done."""
    adapter.model()["quantizations"] = "auto"
    adapter.write_config()
    adapter.run("--cores", "2", "all")
    assert (adapter.folder / "results/base/gguf/base.F16.gguf").exists()
    assert (adapter.folder / "results/small/ollama/F16/registered.json").exists()
    assert adapter.planned() == {}


def test_the_adapter_retrained(adapter: Build) -> None:
    save_small_adapter(adapter.folder / "base", adapter.folder / "adapter", seed=2)
    assert adapter.planned() == {"check_inputs": 1, "convert_adapter_to_gguf": 1, "register": 1}
    adapter.run("--cores", "2", "all")
    assert adapter.planned() == {}
    marker = json.loads((adapter.folder / "results/small/ollama/Q8_0/registered.json").read_text("utf-8"))
    record = json.loads((adapter.folder / "results/small/gguf/small.adapter.json").read_text("utf-8"))
    assert marker["adapter"]["sha256"] == record["sha256"]
    assert "small:q8_0 (results/ollama-store): as registered" in adapter.run("--cores", "1", "verify")


@pytest.mark.parametrize("pattern", ["adapter/*", "base/*", "results/small/gguf/*", "results/base/gguf/*"])
def test_touched_but_not_changed(adapter: Build, pattern: str) -> None:
    files = sorted(adapter.folder.glob(pattern))
    assert files
    for file in files:
        later = file.stat().st_mtime_ns + 10**10
        os.utime(file, ns=(later, later))
    assert adapter.planned() == {}


def test_a_prompt(adapter: Build) -> None:
    adapter.model()["ollama"]["system"] = "Answer briefly."
    assert adapter.planned() == REGISTRATION


def test_questions_that_it_is_asked(adapter: Build) -> None:
    """Neither the questions nor the pages that show the answers want anything merged with the adapter."""
    (adapter.folder / "q.jsonl").write_text('{"question": "a", "expect": "b"}\n', "utf-8")
    adapter.model()["answers"] = {"questions": "q.jsonl"}
    jobs = dict.fromkeys(("check_inputs", "ask_questions", "compare_answers", "check_answers"), 1)
    assert adapter.planned() == jobs
    assert adapter.planned_pages() == {"write_overview": 1, "write_page": 1}


def test_merged_after_all(adapter: Build) -> None:
    """The base's files stay as they are; the model gets weights of its own."""
    del adapter.model()["serve"]
    jobs = adapter.planned()
    assert jobs["merge_shard"] == 3
    assert jobs["convert_to_gguf"] == jobs["quantize"] == jobs["register"] == 1
    assert "convert_adapter_to_gguf" not in jobs


def test_what_cannot_be_served_is_refused_before_any_heavy_job(adapter: Build) -> None:
    model = Qwen2ForCausalLM.from_pretrained(adapter.folder / "base", dtype=torch.float32)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], use_dora=True)).save_pretrained(
        adapter.folder / "adapter"
    )
    (adapter.folder / "results/base/gguf/base.Q8_0.gguf").unlink()
    (adapter.folder / "results/base/gguf/base.Q8_0.json").unlink()
    adapter.write_config()
    said = adapter.run_to_failure("--cores", "2", "all")
    assert "models.small.serve: the adapter adapter cannot be served beside the base's GGUF" in said
    assert "DoRA: its magnitudes depend on the base's weights" in said
    assert not (adapter.folder / "results/base/gguf/base.Q8_0.gguf").exists()


@pytest.fixture(scope="session")
def finished_with_base(finished_adapter: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The same with the base registered for itself: a model that Ollama has already."""
    folder = tmp_path_factory.mktemp("with-base") / "work"
    shutil.copytree(finished_adapter.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished_adapter.config)))
    build.config["models"]["base"] = {"base": "base", "quantizations": ["Q8_0"]}
    build.write_config()
    build.run("--cores", "2", "registered")
    return build


@pytest.fixture
def beside_ollama(finished_with_base: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it with another adapter, to be served beside the weights that Ollama has; nothing else is to be built."""
    folder = tmp_path / "work"
    shutil.copytree(finished_with_base.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished_with_base.config)))
    other = json.loads(json.dumps(build.model())) | {"adapter": "second"}
    other["ollama"] = other.get("ollama", {}) | {"from": "base:q8_0"}
    build.config["models"] = {"small": other}
    shutil.rmtree(folder / "results/small")
    shutil.rmtree(folder / "results/base")
    yield build
    shutil.rmtree(folder)


def test_beside_a_model_in_ollama(beside_ollama: Build) -> None:
    """The base is neither converted nor quantized, and Ollama's blob neither copied nor changed."""
    assert beside_ollama.planned() == OF_AN_ADAPTER | {"take_base_from_ollama": 1}
    blobs = sorted(beside_ollama.folder.glob("results/ollama-store/blobs/*"), key=lambda blob: blob.stat().st_size)
    before = {blob.name: (blob.stat().st_ino, blob.stat().st_size) for blob in blobs}
    beside_ollama.run("--cores", "2", "all")
    assert beside_ollama.planned() == {}
    link = beside_ollama.folder / "results/small/gguf/small.Q8_0.gguf"
    assert link.is_symlink()
    assert link.resolve() == blobs[-1].resolve()
    after = {blob.name: (blob.stat().st_ino, blob.stat().st_size) for blob in blobs}
    assert after == before
    marker = json.loads((beside_ollama.folder / "results/small/ollama/Q8_0/registered.json").read_text("utf-8"))
    assert blobs[-1].name == f"sha256-{marker['gguf']['sha256']}"
    assert "small:q8_0 (results/ollama-store): as registered" in beside_ollama.run("--cores", "1", "verify")
    # A new adapter goes beside the same weights; they are not looked for again.
    save_small_adapter(beside_ollama.folder / "base", beside_ollama.folder / "second", seed=9)
    assert beside_ollama.planned() == {"check_inputs": 1, "convert_adapter_to_gguf": 1, "register": 1}


def test_merged_after_it_was_beside_a_model_in_ollama(beside_ollama: Build) -> None:
    """The link gives way to a GGUF of its own; what it led to stays."""
    beside_ollama.write_config()
    beside_ollama.run("--cores", "2", "gguf")
    link = beside_ollama.folder / "results/small/gguf/small.Q8_0.gguf"
    blob, size = link.resolve(), link.stat().st_size
    del beside_ollama.model()["serve"], beside_ollama.model()["ollama"]["from"]
    assert beside_ollama.planned("gguf")["quantize"] == 1
    beside_ollama.run("--cores", "2", "gguf")
    assert not link.is_symlink()
    assert blob.stat().st_size == size
    assert blob.stat().st_ino != link.stat().st_ino


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"ollama": {"from": "nobody:q8_0"}}, "expected a model of Ollama, found none of the name 'nobody:q8_0'"),
        ({"ollama": {"from": "small:q8_0"}}, "expected a model without an adapter, found that small:q8_0 has one"),
        ({"quantizations": ["Q4_K_M"]}, "expected Q4_K_M, which is in `quantizations`, found that base:q8_0 is Q8_0"),
        ({"quantizations": ["Q4_K_M", "Q8_0"]}, "expected the one type that base:q8_0 is of"),
        ({"quantizations": "auto"}, "expected the one type that base:q8_0 is of"),
        ({"serve": "merged"}, "has no effect, since its weights are merged"),
        ({"ollama": {"from": "a b"}}, "'a b'"),
    ],
)  # fmt: skip
def test_a_model_in_ollama_that_cannot_be_used(beside_ollama: Build, edit: dict[str, object], message: str) -> None:
    beside_ollama.model().update(edit)
    beside_ollama.write_config()
    said = " ".join(beside_ollama.run_to_failure("--cores", "2", "all").split())
    key = "quantizations" if "the one type" in message else "ollama.from"
    assert re.search(rf"models\.small\.{key}: [^.]*{re.escape(message)}", said)
    assert "Traceback" not in said
    assert not (beside_ollama.folder / "results/small/gguf/small.Q8_0.gguf").exists()


def test_weights_in_ollama_that_are_damaged(beside_ollama: Build) -> None:
    """Ollama looks at a blob when it comes, and never again."""
    blob = max(beside_ollama.folder.glob("results/ollama-store/blobs/*"), key=lambda one: one.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.unlink()  # It may be the same file as a GGUF.
    blob.write_bytes(content)
    beside_ollama.write_config()
    said = beside_ollama.run_to_failure("--cores", "2", "all")
    assert "has other bytes than its name says" in said
