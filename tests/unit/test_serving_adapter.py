"""Which adapters servers take beside a base: vLLM's and TGI's limits, on adapters that peft saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import plan_of
from peft import LoHaConfig, LoraConfig, PeftConfig
from small_models import lora, random_model, save_adapter

from ollamake.serving_adapter import RANKS, largest_rank, max_lora_rank, refused_by_tgi, refused_by_vllm

ARGUMENTS = Path(__file__).parents[1] / "serving_arguments/vllm-0.33.0.json"


def plan_and_config(folder: Path, family: str, config: PeftConfig, **options: Any) -> tuple[Any, dict[str, Any]]:
    base, adapter = folder / "base", folder / "adapter"
    random_model(family, torch.float32, False).save_pretrained(base)
    save_adapter(base, adapter, config, **options)
    return plan_of(base, adapter), json.loads((base / "config.json").read_text(encoding="utf-8"))


def test_the_ranks_are_those_of_the_parser() -> None:
    recorded = json.loads(ARGUMENTS.read_text(encoding="utf-8"))["arguments"]["max-lora-rank"]["choices"]
    assert list(RANKS) == recorded


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (24, 32), (257, 320), (512, 512), (513, None)])
def test_the_next_rank_that_vllm_takes(rank: int, allowed: int | None) -> None:
    assert max_lora_rank(rank) == allowed


def test_the_rank_is_the_largest_of_all(tmp_path: Path) -> None:
    plan, config = plan_and_config(tmp_path, "qwen2", lora(r=4, rank_pattern={"down_proj": 12})())
    assert largest_rank(plan) == 12
    assert refused_by_vllm(plan, config) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_plain_lora_is_taken(tmp_path: Path, family: str) -> None:
    plan, config = plan_and_config(tmp_path, family, lora(use_rslora=True)())
    assert refused_by_vllm(plan, config) == []
    assert refused_by_tgi(plan) == []


BOTH: dict[str, tuple[Callable[[], PeftConfig], dict[str, Any], str]] = {
    "DoRA": (lora(use_dora=True), {}, "use_dora: DoRA scales"),
    "an embedding saved": (lora(modules_to_save=["embed_tokens"]), {}, "embed_tokens.weight was trained whole"),
    "tokens": (lora(trainable_token_indices=[1, 2]), {}, "embed_tokens.weight was trained whole"),
    "a grown vocabulary": (
        lora(modules_to_save=["embed_tokens", "lm_head"]), {"rows": 170}, "another config.json than the base"),
    "an update of the embedding": (
        lora(target_modules=["embed_tokens", "q_proj"]), {}, "embed_tokens.weight has an update"),
    "norms saved": (lora(modules_to_save=["input_layernorm"]), {}, r"layers.*.input_layernorm.weight was trained whole"),
    "biases": (lora(bias="all"), {}, "q_proj.bias was trained whole"),
    "biases of LoRA": (lora(target_modules=["q_proj"], lora_bias=True), {}, "a bias was trained"),
    "LoHa": (lambda: LoHaConfig(target_modules=["q_proj"], r=4), {}, "peft_type is LOHA: only LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOTH)
def test_what_neither_takes(tmp_path: Path, case: str) -> None:
    config, options, reason = BOTH[case]
    plan, base_config = plan_and_config(tmp_path, "qwen2", config(), **options)
    for reasons in (refused_by_vllm(plan, base_config), refused_by_tgi(plan)):
        assert any(reason in one for one in reasons), reasons
        assert len(set(reasons)) == len(reasons)


def test_what_only_vllm_refuses(tmp_path: Path) -> None:
    plan, config = plan_and_config(tmp_path, "qwen2", lora(init_lora_weights="pissa")())
    assert any("init_lora_weights is 'pissa'" in one for one in refused_by_vllm(plan, config))
    plan, config = plan_and_config(tmp_path / "gpt2", "gpt2", lora(target_modules=["c_attn"])())
    assert refused_by_vllm(plan, config) == ["vLLM has no adapters for GPT2LMHeadModel"]


def test_a_rank_beyond_the_largest(tmp_path: Path) -> None:
    plan, config = plan_and_config(tmp_path, "qwen2", lora(r=513, target_modules=["q_proj"])())
    assert refused_by_vllm(plan, config) == ["its rank is 513; vLLM takes at most 512"]


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_what_only_tgi_would_get_wrong(tmp_path: Path, key: str) -> None:
    plan, config = plan_and_config(tmp_path, "qwen2", lora(**{key: {"o_proj": 2}})())
    assert refused_by_vllm(plan, config) == []
    assert refused_by_tgi(plan) == [f"{key}: TGI scales every update by lora_alpha and r alone"]


def test_experts_are_left_out_by_tgi(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    plan, _ = plan_and_config(tmp_path, "qwen3-moe", config)
    assert any("TGI leaves out the update of model.layers.*.mlp.experts" in one for one in refused_by_tgi(plan))
