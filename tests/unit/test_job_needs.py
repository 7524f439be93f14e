"""The needs of single jobs: against what jobs really take, and against the converter's own choice of type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftConfig
from small_models import ALL_LINEAR, save_adapter
from transformers import AutoModelForCausalLM, Qwen2Config

from ollamake import job_needs
from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.gguf_conversion import outtype_for
from ollamake.merge_plan import plan_merge

SCRIPT = Path(__file__).parents[2] / "scripts/merge_shard.py"
WITH_PEAK = """
import pathlib, runpy, sys
del sys.argv[0]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""Runs a script and prints its peak in KiB. The peak that wait4 gives includes the process that it was forked from."""


def plan_of(shapes: dict[str, list[int]], stored: str = "F16", **more: Any) -> dict[str, Any]:
    tensors = [{"name": name, "shape": shape, "stored": stored, "edits": []} for name, shape in shapes.items()]
    return {"shards": [{"file": "one", "tensors": tensors}], "adapters": []} | more


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer whose matrices are large enough to be seen in the memory of a process."""
    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=1536, intermediate_size=8192, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=200, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide") / "base"
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "narrow"),
    [
        (LoraConfig(r=64, target_modules=ALL_LINEAR), 1.6),
        (LoHaConfig(r=4, target_modules=ALL_LINEAR), 1.6),
    ],
    ids=["lora", "peft"],
)
def test_a_merge_takes_no_more_than_it_is_said_to_need(
    wide_base: Path, tmp_path: Path, config: PeftConfig, narrow: float
) -> None:
    save_adapter(wide_base, tmp_path / "adapter", config, size=0.001)
    plan = plan_merge(read_checkpoint(str(wide_base), "base"), [read_adapter(tmp_path / "adapter", 1.0)], "auto")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    shard = plan["shards"][0]["file"]
    arguments = ["--plan", str(tmp_path / "plan.json"), "--shard", shard, "--output", str(tmp_path / shard)]
    arguments += ["--record", str(tmp_path / "record.json"), "--threads", "2"]
    done = subprocess.run([sys.executable, "-c", WITH_PEAK, str(SCRIPT), *arguments], capture_output=True, check=True)
    needs = job_needs.merge_shard(plan, shard)
    taken = int(done.stdout) * 1024 / 1e6
    assert taken <= needs.mem_mb <= narrow * taken
    assert (tmp_path / shard).stat().st_size / 1e6 == pytest.approx(needs.disk_mb, abs=1)


def test_a_bias_brings_its_weight_into_the_layer_of_peft_and_a_rotation_its_matrix() -> None:
    edit = {"kind": "module", "adapter": 0, "module": "m", "parameters": {"weight": "m.weight", "bias": "m.bias"}}
    weight = {"name": "m.weight", "shape": [4000, 8000], "stored": "F16", "edits": []}
    bias = {"name": "m.bias", "shape": [4000], "stored": "F16", "edits": [edit]}
    needed = {}
    for kind in ("LOHA", "BOFT", "C3A"):
        adapter = {"path": "not there", "config": {"peft_type": kind}, "shapes": {"m": [4000, 8000]}}
        shards = [{"file": "a", "tensors": [weight]}, {"file": "b", "tensors": [bias]}]
        needed[kind] = job_needs.merge_shard({"shards": shards, "adapters": [adapter]}, "b").mem_mb
    assert needed["LOHA"] > 1100 + 17 * 32
    # Measured: 8 bytes for each of inputs x inputs on top.
    assert needed["BOFT"] >= needed["LOHA"] + 8 * 64
    assert needed["C3A"] >= 1100 + 84 * 32


def test_a_shard_that_the_plan_does_not_have() -> None:
    with pytest.raises(KeyError, match="two"):
        job_needs.merge_shard(plan_of({"a": [1, 1]}), "two")


@pytest.mark.parametrize(("kind", "measured"), [("F16", 3300), ("BF16", 4300), ("F32", 3300)])
def test_converting_as_measured_on_512_million_elements(kind: str, measured: int) -> None:
    needs = job_needs.convert(plan_of({"embed": [131072, 4096]}, kind))
    assert measured <= needs.mem_mb <= 1.12 * measured


@pytest.mark.parametrize(("elements", "measured_mib"), [(128 << 20, 630), (512 << 20, 1399)])
def test_quantizing_as_measured(elements: int, measured_mib: int) -> None:
    needs = job_needs.quantize("F16", "Q8_0", elements, 570_000_000)
    assert measured_mib * 2**20 / 1e6 <= needs.mem_mb <= 1.5 * measured_mib * 2**20 / 1e6
    assert needs.disk_mb == 570


def test_experts_become_one_tensor_and_are_there_twice_while_they_are_stacked() -> None:
    alone = plan_of({"model.layers.0.mlp.down_proj.weight": [8 * 1000, 20000]})
    parted = plan_of({f"model.layers.0.mlp.experts.{number}.down_proj.weight": [1000, 20000] for number in range(8)})
    assert job_needs.largest_tensor(parted) == job_needs.largest_tensor(alone) == 160_000_000
    assert job_needs.convert(parted).mem_mb == job_needs.convert(alone).mem_mb + 320


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("with_adapter", [True, False])
def test_the_type_of_the_unquantized_file_is_the_one_that_the_conversion_chooses(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], dtype: str, with_adapter: bool
) -> None:
    base = make_base()
    adapters = [read_adapter(make_adapter(base), 1.0)] if with_adapter else []
    plan = plan_merge(read_checkpoint(str(base), "base"), adapters, dtype)
    assert job_needs.unquantized_type(plan) == outtype_for(plan).upper()
    assert job_needs.elements(plan) == sum(
        parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(base).parameters()
    )


def test_the_largest_job() -> None:
    dense = plan_of({"embed": [152064, 5120], "other": [5120, 5120]})
    job, needs = job_needs.largest_job(dense, ["Q4_K_M", "Q8_0"])
    assert job == "converting to GGUF"
    assert needs == job_needs.convert(dense)
    small = plan_of({"embed": [4096, 256]})
    assert job_needs.largest_job(small, ["Q4_K_M"])[0] == "merging one"


def test_running_a_32b_model() -> None:
    """By the figures of Qwen2.5-32B: 65.5 GB unquantized, 19.9 GB as Q4_K_M, a vocabulary of 152,064."""
    rows = 32_763_876_352 // 5120
    plan = plan_of({"model.embed_tokens.weight": [152_064, 5120], "rest": [rows - 152_064, 5120]})
    assert job_needs.vocabulary(plan) == 152_064
    assert 69_000 > job_needs.evaluate(plan, None).mem_mb > 65_500 + 1_500
    assert 43_000 > job_needs.evaluate(plan, "Q4_K_M").mem_mb > 2 * 19_800 + 1_500
    assert job_needs.compute_imatrix(plan).mem_mb == pytest.approx(job_needs.evaluate(plan, None).mem_mb, rel=0.01)
    assert 2 * 19_800 < job_needs.measure_speed(plan, "Q4_K_M").mem_mb < job_needs.evaluate(plan, "Q4_K_M").mem_mb


def test_a_head_or_an_embedding_tells_the_vocabulary() -> None:
    assert job_needs.vocabulary(plan_of({"transformer.wte.weight": [50_257, 768]})) == 50_257
    assert job_needs.vocabulary(plan_of({"x": [5, 5]})) == 0
