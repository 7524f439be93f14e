"""Every file of config/examples: what it says of itself is so, and with inputs in place of its placeholders it builds.

The inputs are ghosts: checkpoints of the full size with headers and no weights, as config/shapes has them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import one_in
from snakemake_runs import REPOSITORY, planned_jobs, run_snakemake

from ollamake.adapter import read_adapter
from ollamake.bitsandbytes_needs import bitsandbytes_jobs
from ollamake.checkpoint import read_checkpoint
from ollamake.configuration import read_configuration
from ollamake.disk_peak import Registration, disk_peak
from ollamake.ghost_checkpoint import write_ghost_shard
from ollamake.job_needs import compute_imatrix, largest_job
from ollamake.merge_plan import plan_merge
from ollamake.placeholders import PLACEHOLDER, placeholders
from ollamake.safetensors_header import tensor_bytes
from ollamake.shape import Shape, read_shape, shipped_shape

EXAMPLES = {file.stem: file for file in sorted((REPOSITORY / "config/examples").glob("*.yaml"))}
SCHEMA = REPOSITORY / "config/schemas/config.schema.yaml"
SHAPES = REPOSITORY / "config/shapes"

HEADER = ("For:", "Replace:", "Fits:", "Takes:", "Plan:", "Build:")
"""What the lines of an example's head begin with, in their order."""

SHARD = 5_000_000_000
"""Bytes of a shard, as most are published."""

# What is built once for each base, adapter or model, and what once for each quantization.
JOBS: dict[str, dict[str, int]] = {
    "adapter-only": {"merge_shard": 4, "convert_to_gguf": 1, "convert_adapter_to_gguf": 2, "quantize": 1, "register": 2},
    "laptop-7b": {"merge_shard": 4, "convert_to_gguf": 1, "plan_memory": 1},
    "mixture-of-experts": {"merge_shard": 13, "convert_to_gguf": 1, "compute_imatrix": 1, "quantize": 1, "register": 1},
    "road-design-32b": {
        "merge_shard": 14, "convert_to_gguf": 1, "compute_imatrix": 1, "quantize": 2, "evaluate_quality": 2, "register": 2,
        "ask_questions": 2, "write_rag_config": 1,
    },
    "several-adapters": {"merge_shard": 12, "convert_to_gguf": 3, "quantize": 3, "register": 3},
    "slurm": {"merge_shard": 31, "convert_to_gguf": 1, "quantize": 2, "register": 2},
    "vllm-nf4": {
        "merge_shard": 6, "convert_to_gguf": 1, "quantize": 1, "register": 1, "plan_bitsandbytes": 1, "quantize_bitsandbytes": 6,
        "write_serving_files": 1,
    },
}  # fmt: skip
"""Example -> rule -> jobs, of the rules that take time; of what the plan chooses those that are known before it."""


@dataclass(frozen=True)
class Example:
    file: Path

    @property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @property
    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(self.text)
        return content

    @property
    def header(self) -> str:
        return self.text[: self.text.index("\n\n")] if self.text.startswith("# ") else ""

    @property
    def base(self) -> str:
        """The id that stands as the base of all its models."""
        (base,) = set(re.findall(r"^ +base: (\S+)", self.text, re.MULTILINE))
        return base

    def with_inputs(self, folder: Path) -> Path:
        """Write ghosts of all that it leaves open to ``folder``, and a copy of it that names them; return the copy."""
        shape = read_shape(shipped_shape(self.base, SHAPES) or Path(self.base))
        ghost_base(shape, folder / "base")
        text = re.sub(rf"\bbase: {re.escape(self.base)}(?=\s)", f"base: {folder / 'base'}", self.text)
        for place in sorted(set(re.findall(rf"{PLACEHOLDER}[^\s,}}\]]*", text)), key=len, reverse=True):
            path = folder / place.removeprefix(f"{PLACEHOLDER}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text(CONTENTS.get(path.suffix, "Text of the field.\n"), encoding="utf-8")
            elif "runs" in path.parts:
                ghost_adapter(shape, path, folder / "base")
            text = text.replace(place, str(path))
        copy = folder / "mine.yaml"
        copy.write_text(text, encoding="utf-8")
        return copy


CONTENTS = {
    ".jsonl": '{"question": "Minimum radius at 80 km/h?", "expect": "280"}\n',
    ".yaml": "llm:\n  ollama_model: old\n",
}


def ghost_base(shape: Shape, folder: Path) -> None:
    """Write a checkpoint with the tensors of a shape, in shards with headers and holes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config), encoding="utf-8")
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    room = SHARD
    for name, dtype, dimensions in shape.tensors:
        size = tensor_bytes(dtype, dimensions)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD
        shards[-1].append((name, dtype, dimensions))
        room -= size
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, tensors in zip(files, shards, strict=True):
        write_ghost_shard(folder / file, tensors)
    where = {name: file for file, tensors in zip(files, shards, strict=True) for name, _, _ in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf-8")


def ghost_adapter(shape: Shape, folder: Path, base: Path) -> None:
    """Write a LoRA adapter of rank 16 on attention and, of a mixture, on experts and routers."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$|\.experts\.|\.mlp\.gate\.weight$")
    halves, targets = [], set()
    for name, _, dimensions in shape.tensors:
        if trained.search(name):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            targets.add(module.rpartition(".")[2])
            halves.append((f"{module}.lora_A.weight", "F32", (16, dimensions[1])))
            halves.append((f"{module}.lora_B.weight", "F32", (dimensions[0], 16)))
    write_ghost_shard(folder / "adapter_model.safetensors", halves)
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": sorted(targets)}
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}), encoding="utf-8"
    )


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    return Example(EXAMPLES[request.param])


@pytest.fixture(scope="module")
def tools(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second configuration, which names the programs of llama.cpp that are here."""
    file = tmp_path_factory.mktemp("tools") / "tools.yaml"
    file.write_text(yaml.safe_dump({"tools": {"llama_cpp": str(programs)}}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def with_inputs(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an example beside ghosts of all that it leaves open."""
    return example.with_inputs(tmp_path_factory.mktemp(example.file.stem))


def run(folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """Run Snakemake in ``folder``, where no Ollama answers; return its exit code and what it printed."""
    done = run_snakemake(*arguments, folder=folder, OLLAMA_HOST="127.0.0.1:1")
    return done.returncode, done.stdout


def test_it_is_read_and_opens_with_what_one_must_know(example: Example) -> None:
    """By the schema, which knows no other keys; it leaves something open, and says for whom it is and what to do."""
    configuration = read_configuration(example.config, SCHEMA)
    assert configuration.models
    assert placeholders(example.config)
    found = re.findall(r"^# +(\w+:)", example.header, re.MULTILINE)
    assert tuple(found) == HEADER
    for command in (f"--configfile config/examples/{example.file.name}", "--configfile mine.yaml"):
        assert command in example.header
    assert len(example.text.splitlines()) < 45


def test_the_readme_has_them_all() -> None:
    """Its table of examples names these files and no others."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(config/examples/(\S+\.yaml)\)", readme))
    assert named == {file.name for file in EXAMPLES.values()}


def test_it_builds_with_inputs(example: Example, with_inputs: Path, tools: Path) -> None:
    assert placeholders(yaml.safe_load(with_inputs.read_text(encoding="utf-8"))) == []
    code, printed = run(with_inputs.parent, "-n", "all", "--configfile", with_inputs.name, tools)
    assert code == 0, printed
    assert not re.search(r"warning|error", printed, re.IGNORECASE), printed
    jobs = planned_jobs(printed)
    expected = JOBS[example.file.stem]
    assert {rule: jobs.get(rule) for rule in expected} == expected
    # Nothing that takes time runs beside these.
    others = {
        "merge_shard",
        "convert_to_gguf",
        "convert_adapter_to_gguf",
        "compute_imatrix",
        "quantize",
        "evaluate_quality",
        "quantize_bitsandbytes",
        "evaluate_bitsandbytes",
    }
    assert not {rule for rule in others & jobs.keys() if rule not in expected}
    models = example.config["models"]
    assert jobs["check_inputs"] >= len(models)


def test_what_is_left_open_is_named_all_at_once(tools: Path, tmp_path: Path) -> None:
    """Run as it is: every placeholder by its key, before anything is asked of the hub."""
    one = Example(REPOSITORY / "config/examples/road-design-32b.yaml")
    code, printed = run(tmp_path, "-n", "all", "--configfile", one.file, tools)
    assert code == 1
    left = placeholders(one.config)
    assert len(left) == 5
    for line in left:
        assert f"    {line}\n" in printed
    assert "Put paths of your own in their place" in printed
    # With a base, before anything else of the configuration is looked at.
    text = one.text.replace(f"base: {one.base}", f"base: {tmp_path}")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    code, printed = run(tmp_path, "-n", "all", "--configfile", "mine.yaml", tools)
    assert code == 1
    assert all(f"    {line}\n" in printed for line in left)
    assert "config.json" not in printed


def test_what_it_takes(example: Example, with_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk at the peak and memory of the largest job, as the check of the inputs counts them before a build."""
    monkeypatch.chdir(with_inputs.parent)
    configuration = read_configuration(yaml.safe_load(with_inputs.read_text(encoding="utf-8")), SCHEMA)
    model = next(iter(configuration.models.values()))
    adapters = [] if model.served_base else [read_adapter(Path(one.path), one.weight) for one in model.adapters]
    plan = plan_merge(read_checkpoint(model.base, "base"), adapters, configuration.dtype)
    types = model.quantizations or tuple(re.findall(r"# +Fits: +(\w+),", example.header))
    registration = Registration("shared" if configuration.target == "store" else "server", configuration.target, "")
    peak = disk_peak(
        plan, model.name, tmp_path, types, registration, keep_merged=configuration.keep_merged,
        keep_unquantized=configuration.keep_unquantized, checkpoints=model.bitsandbytes.types,
    )  # fmt: skip
    jobs = [largest_job(plan, types), *bitsandbytes_jobs(plan, model.bitsandbytes.types, None)]
    needs = max((needs for _, needs in jobs), key=lambda one: one.mem_mb)
    disk = f"{peak.needed / 1e9:,.0f} GB of disk at the peak, {peak.stays / 1e9:,.0f} GB of which stay"
    said = f"{disk}; {needs.mem_mb / 1e3:.0f} GB of memory"
    if model.calibration.is_given:
        said += f", {compute_imatrix(plan).mem_mb / 1e3:.0f} GB to compute the importance matrix"
    assert f"Takes:   {said}" in example.header


@pytest.fixture(scope="module")
def planned_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples are planned: what llama.cpp says of a base that several have is asked once."""
    return tmp_path_factory.mktemp("plans")


@pytest.mark.parametrize("example", one_in(3, EXAMPLES), indirect=True)
def test_the_plan_needs_no_edit_and_says_what_fits(example: Example, planned_in: Path, tools: Path) -> None:
    code, printed = run(planned_in, "--cores", "2", "plan", "--configfile", example.file, tools)
    assert code == 0, printed
    name = next(iter(example.config["models"]))
    plan = json.loads((planned_in / f"results/{name}/plan.json").read_text(encoding="utf-8"))
    kind = plan["recommendation"]["type"]
    size = next(row["bytes"] for row in plan["rows"] if row["type"] == kind)
    sentence = r"best of those that fit .+?: ([\d.]+) GiB of ([\d.]+) GiB usable with a context of ([\d,]+) tokens"
    found = re.search(sentence, " ".join(printed.split()))
    assert found is not None, printed
    total, usable, context = found.groups()
    said = f"{kind}, {size / 1e9:.1f} GB: {total} of {usable} GiB with {context} tokens"
    said += f", num_ctx {plan['num_ctx'][kind]['tokens']:,}"
    assert f"Fits:    {said}" in example.header
    given = [*example.config["models"].values(), example.config.get("defaults", {})]
    first = next(one["quantizations"] for one in given if "quantizations" in one)
    assert first == "auto" or first[0] == kind, "the example builds what the plan recommends"
