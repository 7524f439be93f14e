"""After a finished build, each single edit reruns exactly the jobs it must."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dag_build import Build, save_small_adapter, save_small_base
from safetensors.torch import load_file, save_file
from snakemake_runs import REPOSITORY, run_snakemake

PROMPT = {"write_modelfile": 2, "register": 2}
PLAN = {"measure_ghost": 1, "plan_memory": 1, "draw_plan": 1}
FROM_THE_GGUF = {"quantize": 2, "register": 2, "check_template": 1}
FROM_ITS_RECORD = {"record_conversion": 1, "choose_template": 1, **PROMPT, **FROM_THE_GGUF}
FROM_CONVERSION = {"convert_to_gguf": 1, **FROM_ITS_RECORD}
FROM_A_SHARD = {"merge_shard": 1, "write_merge_report": 1, **FROM_CONVERSION}
FROM_ONE_SHARD = {"check_inputs": 1, **FROM_A_SHARD}


def touch(file: Path, seconds: int = 10) -> None:
    later = file.stat().st_mtime_ns + seconds * 10**9
    os.utime(file, ns=(later, later))


def test_nothing(build: Build) -> None:
    assert build.planned() == {}


def test_a_system_prompt(build: Build) -> None:
    build.model()["ollama"]["system"] = "Answer briefly."
    assert build.planned() == PROMPT


def test_a_parameter(build: Build) -> None:
    build.model()["ollama"]["parameters"]["temperature"] = 0.2
    assert build.planned() == PROMPT


def test_two_parameters_that_swap_values(build: Build) -> None:
    build.model()["ollama"]["parameters"] = {"temperature": 0.9, "top_p": 0.1}
    build.write_config()
    build.run("--cores", "1", "all")
    build.model()["ollama"]["parameters"] = {"temperature": 0.1, "top_p": 0.9}
    assert build.planned() == PROMPT


def test_the_pages_of_the_report_follow_what_they_show(build: Build) -> None:
    assert build.planned_pages() == {}
    build.model()["ollama"]["system"] = "Answer briefly."
    assert build.planned_pages() == {"write_overview": 1}
    build.config["plan"] = {"margin_gib": 2}
    assert build.planned_pages() == {"write_overview": 1, "write_page": 1}


def test_another_name_in_ollama(build: Build) -> None:
    build.model()["ollama"]["name"] = "road"
    assert build.planned() == PROMPT


def test_a_quantization_added(build: Build) -> None:
    build.model()["quantizations"].append("Q5_K_M")
    assert build.planned() == {"check_inputs": 1, "quantize": 1, "write_modelfile": 1, "register": 1}


def test_a_quantization_added_and_the_prompt_changed(build: Build) -> None:
    build.model()["quantizations"].append("Q5_K_M")
    build.model()["ollama"]["system"] = "Answer briefly."
    assert build.planned() == {"check_inputs": 1, "quantize": 1, "write_modelfile": 3, "register": 3}


def test_a_quantization_removed(build: Build) -> None:
    build.model()["quantizations"].remove("Q8_0")
    assert build.planned() == {"check_inputs": 1}
    assert (build.folder / "results/small/gguf/small.Q8_0.gguf").exists()


def test_a_second_model(build: Build) -> None:
    build.config["models"]["plain"] = {"base": "base", "quantizations": ["Q8_0"]}
    one_each = (
        "check_inputs",
        "plan_merge",
        "measure_ghost",
        "plan_memory",
        "draw_plan",
        "write_merge_report",
        "write_model_files",
        "convert_to_gguf",
        "record_conversion",
        "quantize",
        "choose_template",
        "write_modelfile",
        "register",
        "check_template",
    )
    assert build.planned() == {"merge_shard": 3, **dict.fromkeys(one_each, 1)}


@pytest.mark.parametrize("seconds", [0, -(10**6)], ids=["newer", "older"])
def test_the_adapter_retrained(build: Build, seconds: int) -> None:
    save_small_adapter(build.folder / "base", build.folder / "adapter", seed=2)
    touch(build.folder / "adapter/adapter_model.safetensors", seconds)
    assert build.planned() == FROM_ONE_SHARD | {"merge_shard": 3}


def test_the_weight_of_an_adapter(build: Build) -> None:
    model = build.model()
    model["adapters"] = [{"path": model.pop("adapter"), "weight": 0.5}]
    everything = {"plan_merge": 1, "write_model_files": 1, "merge_shard": 3, **PLAN}
    assert build.planned() == FROM_ONE_SHARD | everything


def test_one_base_shard_replaced(build: Build, tmp_path: Path) -> None:
    save_small_base(tmp_path / "other", seed=2)
    name = "model-00002-of-00003.safetensors"
    shutil.copy(tmp_path / "other" / name, build.folder / "base" / name)
    assert build.planned() == FROM_ONE_SHARD


@pytest.mark.parametrize(
    "pattern",
    [
        "base/*.safetensors",
        "adapter/*",
        "base/*.json",
        "results/small/merged/*",
        "results/small/gguf/*",
        "results/small/*.json",
    ],
)
def test_touched_but_not_changed(build: Build, pattern: str) -> None:
    """Neither a later nor an earlier time than at the build makes a difference."""
    files = sorted(build.folder.glob(pattern))
    assert files
    for seconds in (10**6, -2 * 10**6):
        for file in files:
            touch(file, seconds)
        assert build.planned() == {}


def test_a_touched_shard_stays_unchanged_after_a_rebuild_for_another_reason(build: Build) -> None:
    for shard in (build.folder / "base").glob("*.safetensors"):
        touch(shard)
    build.write_config()
    build.run("--cores", "2", "--forcerun", "merge_shard", "--", "all")
    assert build.planned() == {}


@pytest.mark.parametrize(
    ("script", "jobs"),
    [
        (
            "plan_merge",
            {
                "plan_merge": 1,
                "merge_shard": 3,
                "write_merge_report": 1,
                "write_model_files": 1,
                **FROM_CONVERSION,
                **PLAN,
            },
        ),
        ("merge_shard", FROM_A_SHARD | {"merge_shard": 3}),
        ("write_merge_report", {"write_merge_report": 1}),
        ("convert_to_gguf", FROM_CONVERSION),
        ("quantize", FROM_THE_GGUF),
        ("write_modelfile", PROMPT),
        ("register", {"register": 2}),
        ("choose_template", {"choose_template": 1, **PROMPT, "check_template": 1}),
        ("check_template", {"check_template": 1}),
        ("verify", {}),
        ("ask_questions", {}),
        ("check_inputs", {"check_inputs": 1}),
        ("ollamake/modelfile", PROMPT),
        ("ollamake/ollama_store", {"register": 2}),
        ("ollamake/ollama_manifest", {"register": 2}),
        ("ollamake/prompt_check", {"check_template": 1}),
        ("ollamake/template_probing", {"choose_template": 1, **PROMPT, "check_template": 1}),
        ("ollamake/generation_defaults", {"choose_template": 1, **PROMPT, "check_template": 1}),
        ("ollamake/drift", {}),
        ("snakemake_storage_plugin_ollama/__init__", {}),
        ("ollamake/merge_arithmetic", FROM_A_SHARD | {"merge_shard": 3}),
        ("ollamake/peft_module", FROM_A_SHARD | {"merge_shard": 3}),
        ("ollamake/merge_plot", {"write_merge_report": 1}),
        ("ollamake/unquantized_record", FROM_ITS_RECORD),
        ("ollamake/gguf_quantization", FROM_THE_GGUF | PLAN | PROMPT | {"check_inputs": 1}),
        ("ollamake/ghost", PLAN | PROMPT),
        ("ollamake/context_fit", {"plan_memory": 1, "draw_plan": 1, **PROMPT}),
        ("ollamake/plan_plot", {"draw_plan": 1}),
        ("ollamake/job_times", {"draw_plan": 1}),
        ("ollamake/disk_peak", {"check_inputs": 1}),
        ("ollamake/input_checks", {"check_inputs": 1}),
        ("ollamake/demo_training", {}),
        ("ollamake/configuration", {}),
    ],
)
def test_code(finished_with_own_code: Callable[[], tuple[Build, Path]], script: str, jobs: dict[str, int]) -> None:
    build, code = finished_with_own_code()
    file = code / "scripts" / f"{script}.py"
    with file.open("a", encoding="utf-8") as source:
        source.write("\n# changed\n")
    try:
        assert build.planned("--snakefile", str(code / "Snakefile")) == jobs
    finally:
        shutil.copy2(REPOSITORY / "scripts" / f"{script}.py", file)


def test_code_that_was_only_touched(finished_with_own_code: Callable[[], tuple[Build, Path]]) -> None:
    build, code = finished_with_own_code()
    for file in code.rglob("*.py"):
        touch(file)
    assert build.planned("--snakefile", str(code / "Snakefile")) == {}


def test_another_version_of_llama_quantize(build: Build, programs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(programs, other, symlinks=True)
    build.config["tools"]["llama_cpp"] = str(other)
    assert build.planned("--rerun-triggers", "mtime", "code", "params") == {"check_inputs": 1}
    with (other / "bin/llama-quantize").open("ab") as program:
        program.write(b"\0")
    assert build.planned("--rerun-triggers", "mtime", "code", "params") == FROM_THE_GGUF | PLAN | PROMPT | {
        "check_inputs": 1
    }


@pytest.mark.parametrize(
    ("deleted", "jobs"),
    [
        ("gguf/small.Q4_K_M.gguf", {"quantize": 1, "register": 1, "check_template": 1}),
        ("ollama/template_check.json", {"check_template": 1}),
        ("ollama/template.json", {}),
        ("ollama/Q8_0/Modelfile", {"write_modelfile": 1, "register": 1}),
        ("ollama/Q8_0/registered.json", {"register": 1}),
        ("inputs.json", {"check_inputs": 1}),
        ("merged/model-00001-of-00003.safetensors", {}),
        ("merge_records/model-00002-of-00003.json", {}),
        ("merge_report.svg", {"write_merge_report": 1}),
        ("gguf/small.unquantized.gguf", {}),
    ],
)
def test_a_result_deleted(build: Build, deleted: str, jobs: dict[str, int]) -> None:
    (build.folder / "results/small" / deleted).unlink()
    assert build.planned() == jobs


@contextmanager
def killed_when(build: Build, target: str, ready: Callable[[], bool]) -> Iterator[None]:
    """Run Snakemake with one core until ``ready``, and kill it and all its jobs as a power cut would."""
    build.write_config()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1"]
    command += ["--directory", str(build.folder), "--configfile", "mine.yaml", "--", target]
    running = subprocess.Popen(
        command, cwd=build.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ready():
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    yield


def test_a_job_killed_in_the_middle(build: Build) -> None:
    """The killed job is planned again, not what was done before it, and the bytes are those of an undisturbed build."""
    gguf = build.folder / "results/small/gguf/small.Q4_K_M.gguf"
    target = str(gguf.relative_to(build.folder))
    expected = gguf.read_bytes()
    gguf.unlink()
    slow = build.folder / "slow"
    shutil.copytree(build.config["tools"]["llama_cpp"], slow, symlinks=True)
    program = slow / "bin/llama-quantize"
    program.rename(slow / "bin/real")
    program.write_text(f'#!/bin/sh\ntouch {build.folder}/started\nsleep 60\nexec {slow}/bin/real "$@"\n')
    program.chmod(0o755)
    build.config["tools"]["llama_cpp"] = str(slow)
    with killed_when(build, target, (build.folder / "started").exists):
        assert not gguf.exists()
        program.unlink()
        (slow / "bin/real").rename(program)
    assert build.planned(target) == {"quantize": 1}
    build.run("--cores", "1", target)
    assert gguf.read_bytes() == expected
    assert not list(gguf.parent.glob(".*.tmp"))


def test_a_merge_killed_between_its_shards(build: Build, finished: Build) -> None:
    """Finished shards are not merged again, and all of them have the bytes of an undisturbed build."""
    results = build.folder / "results/small"
    shutil.rmtree(results)
    record = "merge_records/model-{}-of-00003.json"
    shards = ("00001", "00002", "00003")
    with killed_when(build, "merged", lambda: any((results / record.format(shard)).exists() for shard in shards)):
        done = [shard for shard in shards if (results / record.format(shard)).exists()]
        times = {shard: (results / record.format(shard)).stat().st_mtime_ns for shard in done}
    # Snakemake itself may not yet have taken note of the last one.
    assert build.planned("merged")["merge_shard"] in (3 - len(done), 3 - len(done) + 1)
    build.run("--cores", "2", "merged")
    redone = [shard for shard in done if (results / record.format(shard)).stat().st_mtime_ns != times[shard]]
    assert len(redone) <= 1
    for shard in shards:
        name = f"merged/model-{shard}-of-00003.safetensors"
        assert (results / name).read_bytes() == (finished.folder / "results/small" / name).read_bytes()
    assert not list((results / "merged").glob(".*.tmp"))


def test_cores_change_nothing_of_the_bytes(build: Build, finished: Build) -> None:
    """What was built with two cores is built with one, and with four, with the same bytes."""
    made = sorted((finished.folder / "results/small").glob("merged/*.safetensors"))
    made += sorted((finished.folder / "results/small/gguf").glob("*.gguf"))
    assert len(made) == 6
    for cores in ("1", "4"):
        shutil.rmtree(build.folder / "results/small")
        build.write_config()
        build.run("--cores", cores, "gguf", "merged")
        for file in made:
            assert (build.folder / file.relative_to(finished.folder)).read_bytes() == file.read_bytes(), (cores, file)


def test_a_dry_run_writes_nothing(finished: Build, tmp_path: Path) -> None:
    """Before and after a build: not a file outside .snakemake appears, disappears or changes its time."""
    fresh = Build(tmp_path / "fresh", finished.config)
    shutil.copytree(finished.folder / "base", fresh.folder / "base")
    shutil.copytree(finished.folder / "adapter", fresh.folder / "adapter")
    for build in (fresh, finished):
        build.write_config()
        before = listing(build.folder)
        done = run_snakemake("--configfile", "mine.yaml", "-n", "all", folder=build.folder)
        assert done.returncode == 0, done.stdout
        assert listing(build.folder) == before


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    files = [file for file in folder.rglob("*") if ".snakemake" not in file.parts]
    return {str(file): (file.lstat().st_mtime_ns, file.lstat().st_size) for file in files}


def test_what_a_merge_warns_of_is_said_at_the_end(build: Build) -> None:
    file = build.folder / "adapter/adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    build.write_config()
    said = build.run("--cores", "2", "all")
    end = said[said.index("steps (100%) done") :]
    assert "small, warning of its merge: the adapter changes nothing" in end
    assert end.index("warning of its merge") < end.index("small is ready")


def test_without_a_target_everything_is_built(build: Build) -> None:
    """The first rule is the default target, and a rule in an included file never is."""
    build.model()["ollama"]["system"] = "Answer briefly."
    build.write_config()
    assert build.planned() == build.planned("all") == PROMPT


def test_stages_build_only_what_they_need(build: Build) -> None:
    shutil.rmtree(build.folder / "results")
    merge = {"check_inputs": 1, "plan_merge": 1, "merge_shard": 3, "write_model_files": 1}
    gguf = merge | {"convert_to_gguf": 1, "record_conversion": 1, "quantize": 2}
    planned_num_ctx = {"measure_ghost": 1, "plan_memory": 1}
    stages = {
        "merged": merge | {"write_merge_report": 1},
        "gguf": gguf,
        "modelfiles": gguf | planned_num_ctx | {"choose_template": 1, "write_modelfile": 2},
        "registered": gguf | planned_num_ctx | {"choose_template": 1, "check_template": 1} | PROMPT,
    }
    for stage, jobs in stages.items():
        planned = build.planned(stage)
        planned.pop(stage)
        assert planned == jobs
