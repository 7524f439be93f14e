"""What fits is planned from headers alone; a plan that changes rebuilds what takes its word, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dag_build import Build, save_small_adapter, save_small_base
from plan_in_readme import BEGIN, CONFIG, END, table
from snakemake_runs import REPOSITORY, run_snakemake

from ollamake.record_seal import read_sealed_text

PLANNED = {"plan_memory": 1, "draw_plan": 1}
PROMPT = {"write_modelfile": 2, "register": 2}


def plan_of(build: Build, model: str = "small") -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((build.folder / f"results/{model}/plan.json").read_text(encoding="utf-8"))
    return plan


@pytest.mark.parametrize(
    "hardware",
    [
        {"gpus": [{"name": "A100-40GB", "memory_gib": 36}], "ram_gib": 64},
        {"gpus": [], "ram_gib": 64},
        {"gpus": [{"name": "RTX 4090", "memory_gib": 24}], "ram_gib": 32},
    ],
    ids=["another GPU", "no GPU", "less RAM"],
)
def test_other_hardware(build: Build, hardware: dict[str, Any]) -> None:
    build.config["hardware"] = hardware
    assert build.planned() == {**PLANNED, **PROMPT}


def test_more_disk_is_a_matter_of_the_check(build: Build) -> None:
    build.config["hardware"]["disk_gib"] = 500
    assert build.planned() == {"check_inputs": 1}


def test_another_context(build: Build) -> None:
    build.config["plan"] = {"context": 4096}
    assert build.planned() == {"measure_ghost": 1, **PLANNED, **PROMPT}


def test_another_margin(build: Build) -> None:
    build.config["plan"] = {"margin_gib": 2}
    assert build.planned() == {**PLANNED, **PROMPT}


def test_an_alternative(build: Build) -> None:
    build.config["plan"] = {"alternatives": ["Qwen/Qwen2.5-7B-Instruct"]}
    assert build.planned("plan") == {"plan": 1, "measure_shape": 1, **PLANNED}
    build.write_config()
    assert "Qwen/Qwen2.5-7B-Instruct" in build.run("--cores", "2", "plan")
    assert "Qwen/Qwen2.5-7B-Instruct" in (build.folder / "results/small/plan.md").read_text(encoding="utf-8")
    build.config["plan"]["alternatives"].append("org/not-shipped")
    assert build.planned("plan") == {"plan": 1, "fetch_shape": 1, "measure_shape": 1, **PLANNED}


def test_a_context_of_ones_own_does_not_follow_the_plan(build: Build) -> None:
    build.model()["ollama"]["parameters"]["num_ctx"] = 1024
    assert build.planned() == {**PROMPT, "check_template": 1}
    build.run("--cores", "2", "all")
    build.config["hardware"]["gpus"] = []
    assert build.planned() == PLANNED


def test_the_planned_context_is_in_the_modelfile(build: Build) -> None:
    tokens = plan_of(build)["num_ctx"]["Q4_K_M"]["tokens"]
    assert tokens == plan_of(build)["trained_context"]
    modelfile = (build.folder / "results/small/ollama/Q4_K_M/Modelfile").read_text(encoding="utf-8")
    assert f"PARAMETER num_ctx {tokens}" in modelfile
    request = json.loads((build.folder / "results/small/ollama/Q4_K_M/create_request.json").read_text(encoding="utf-8"))
    assert request["parameters"]["num_ctx"] == tokens


def test_sizes_were_predicted_to_the_byte(build: Build) -> None:
    sizes = {row["type"]: row["bytes"] for row in plan_of(build)["rows"] if "bytes" in row}
    for quant in ("Q4_K_M", "Q8_0"):
        assert (build.folder / f"results/small/gguf/small.{quant}.gguf").stat().st_size == sizes[quant]


@pytest.fixture(scope="session")
def fresh(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Inputs of a model whose quantization is chosen by the plan, nothing built."""
    folder = tmp_path_factory.mktemp("fresh") / "work"
    save_small_base(folder / "base")
    save_small_adapter(folder / "base", folder / "adapter")
    model = {"base": "base", "adapter": "adapter", "quantizations": "auto"}
    config = {
        "models": {"small": model},
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(programs)},
        "hardware": {"gpus": [{"name": "large", "memory_gib": 24}], "ram_gib": 64},
    }
    return Build(folder, config)


def test_a_quantization_by_the_plan(fresh: Build) -> None:
    """What comes after the plan is not known before it; then the plan's type is built, and with less memory another."""
    before = fresh.planned()
    assert {job: before[job] for job in ("plan_merge", "measure_ghost", "plan_memory")} == {
        "plan_merge": 1,
        "measure_ghost": 1,
        "plan_memory": 1,
    }
    fresh.run("--cores", "2", "all")
    assert plan_of(fresh)["recommendation"]["type"] == "F16"
    assert (fresh.folder / "results/small/ollama/F16/registered.json").exists()
    assert fresh.planned() == {}

    sizes = {row["type"]: row["bytes"] for row in plan_of(fresh)["rows"] if "bytes" in row}
    smaller = Build(fresh.folder, json.loads(json.dumps(fresh.config)))
    # Neither F16 nor Q8_0 with its context fits any more.
    least = next(row for row in plan_of(fresh)["rows"] if row["type"] == "Q6_K")["fits"][0]["total_mib"]
    assert sizes["F16"] > sizes["Q8_0"] > sizes["Q6_K"]
    smaller.config["hardware"]["gpus"] = [{"name": "small", "memory_gib": (least + 0.5) / 1024 + 1 + 500 / 1024}]
    smaller.write_config()
    smaller.run("--cores", "2", "all")
    chosen = plan_of(smaller)["recommendation"]["type"]
    assert chosen != "F16"
    assert (smaller.folder / f"results/small/ollama/{chosen}/registered.json").exists()
    assert (smaller.folder / "results/small/gguf/small.F16.gguf").exists(), "nothing is deleted"
    assert smaller.planned() == {}


def test_nothing_fits(fresh: Build, tmp_path: Path) -> None:
    for name in ("base", "adapter"):
        shutil.copytree(fresh.folder / name, tmp_path / name)
    build = Build(tmp_path, json.loads(json.dumps(fresh.config)))
    build.config["hardware"] = {"gpus": [{"name": "tiny", "memory_gib": 1.5}], "ram_gib": 2}
    build.write_config()
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "1", "all", folder=tmp_path)
    assert done.returncode == 1
    assert "models.small.quantizations is auto, but" in done.stdout
    assert "plan.context" in done.stdout
    assert not list((tmp_path / "results/small").glob("*/*.safetensors")), "said before the heavy jobs"


def test_a_base_that_is_not_here(fresh: Build, tmp_path: Path) -> None:
    """It is planned from a shape alone: no weights, no adapter, no network. The README shows this very plan."""
    build = Build(tmp_path, json.loads(json.dumps(fresh.config)) | yaml.safe_load(CONFIG))
    assert build.planned("plan") == {"plan": 1, "measure_shape": 1, **PLANNED}
    printed = build.run("--cores", "2", "plan")
    plan = plan_of(build, "rag")
    assert plan["recommendation"]["type"] == "Q8_0"
    sizes = {row["type"]: row["bytes"] for row in plan["rows"] if "bytes" in row}
    assert sizes["Q4_K_M"] == pytest.approx(19.851e9, rel=1e-3)

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert CONFIG in readme
    assert readme[readme.index(BEGIN) + len(BEGIN) : readme.index(END)] == table(plan)
    said = printed[printed.index("Recommended: ") : printed.index("num_ctx: auto writes")]
    assert [line.rstrip() for line in said.splitlines()] == re.findall(
        r"^    ((?:Recommended|One|cache, ).*)$", readme, re.MULTILINE
    )
    picture = read_sealed_text(tmp_path / "results/rag/plan.svg")
    assert (REPOSITORY / "docs/plan.svg").read_text(encoding="utf-8") == picture

    # All of it is built from the hub: then the plan is made from what is pinned there.
    assert build.planned("all")["pin_sources"] == 1
    assert "fetch_shard" not in build.planned("all"), "how many there are is known when it is pinned"


def test_the_hub_cannot_be_reached(fresh: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build = Build(tmp_path, json.loads(json.dumps(fresh.config)))
    build.config["models"] = {"rag": {"base": "org/not-shipped"}}
    build.write_config()
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "2", "plan", folder=tmp_path)
    assert done.returncode == 1
    assert "offline" in done.stdout
    assert "Qwen/Qwen2.5-32B-Instruct" in done.stdout, "the shapes that are here"
    assert "Traceback" not in done.stdout


def test_an_architecture_that_llama_cpp_does_not_know(fresh: Build, tmp_path: Path) -> None:
    """The converter's own word, once, before anything is merged; whether a plan is asked for or everything."""
    for name in ("base", "adapter"):
        shutil.copytree(fresh.folder / name, tmp_path / name)
    config = tmp_path / "base/config.json"
    changed = json.loads(config.read_text(encoding="utf-8")) | {"architectures": ["FooForCausalLM"]}
    config.write_text(json.dumps(changed), encoding="utf-8")
    build = Build(tmp_path, json.loads(json.dumps(fresh.config)))
    build.write_config()
    for target in ("plan", "all"):
        done = run_snakemake("--configfile", "mine.yaml", "--cores", "2", target, folder=tmp_path)
        assert done.returncode == 1
        said = done.stdout[done.stdout.rindex("measure_ghost failed") :]
        assert "FooForCausalLM" in said
        assert "Traceback" not in done.stdout
        assert not list((tmp_path / "results/small").glob("*/*.safetensors")), "said before the heavy jobs"


def test_a_chosen_type_that_does_not_fit_is_said_at_the_end(build: Build) -> None:
    build.config["hardware"]["gpus"] = [{"name": "tiny", "memory_gib": 1.49}]
    build.write_config()
    said = build.run("--cores", "2", "all")
    assert "small, warning of its plan: Q8_0 does not fit tiny, " in said[said.index("steps (100%) done") :]


def test_without_llama_fit_params_a_formula_takes_its_place(build: Build, programs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(programs, other, symlinks=True)
    (other / "bin/llama-fit-params").unlink()
    measured = plan_of(build)
    build.config["tools"]["llama_cpp"] = str(other)
    build.write_config()
    assert "by formula" in build.run("--cores", "2", "plan")
    computed = plan_of(build)
    assert (measured["memory"]["source"], computed["memory"]["source"]) == ("llama-fit-params", "formula")
    for one, two in zip(measured["memory"]["rows"], computed["memory"]["rows"], strict=True):
        assert one["kv_mib"] == two["kv_mib"]
        assert abs(one["compute_mib"] - two["compute_mib"]) <= 16 + 0.03 * one["compute_mib"]
