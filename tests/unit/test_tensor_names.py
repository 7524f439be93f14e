"""Names of modules in memory find the tensors on disk, whatever wrapped them; what is ambiguous is not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from merging import load_all, merge_checkpoint
from safetensors.torch import save_file

from ollamake.safetensors_header import TensorEntry
from ollamake.tensor_names import TensorNames


def names_of(config: dict[str, Any], **shapes: tuple[int, ...]) -> TensorNames:
    entries = {name: TensorEntry(name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    return TensorNames(entries, config)


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("layers.0.q.weight", "model.layers.0.q.weight"),
        ("model.layers.0.q.weight", "layers.0.q.weight"),
        ("model.language_model.layers.0.q.weight", "language_model.model.layers.0.q.weight"),
        ("language_model.model.layers.0.q.weight", "model.language_model.layers.0.q.weight"),
        ("model.model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("transformer.h.0.c.weight", "h.0.c.weight"),
        ("h.0.c.weight", "transformer.h.0.c.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("_orig_mod.model.layers.0.q.weight", "model.layers.0.q.weight"),
    ],
)
def test_wrappers(asked: str, stored: str) -> None:
    found = names_of({}, **{stored: (4, 4)}).find(asked)
    assert found is not None
    assert (found.stored, found.shape) == (stored, (4, 4))


def test_other_modules_are_not_taken_for_it() -> None:
    names = names_of({}, **{"model.visual.layers.0.q.weight": (4, 4), "model.layers.0.q.weight": (4, 4)})
    assert names.find_stored("model.layers.0.q.weight") == "model.layers.0.q.weight"
    assert names.find_stored("layers.0.q.weight") == "model.layers.0.q.weight"
    assert names.find("decoder.layers.0.q.weight") is None
    twice = names_of({}, **{"model.layers.0.q.weight": (4, 4), "language_model.layers.0.q.weight": (4, 4)})
    assert twice.find("layers.0.q.weight") is None


def test_experts_that_are_stored_one_by_one() -> None:
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    shapes = {
        f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight": shape
        for expert in range(12)
        for name, shape in {"w1": (6, 4), "w2": (4, 6), "w3": (6, 4)}.items()
    }
    found = names_of(config, **shapes).find("model.layers.1.mlp.experts.gate_up_proj")
    assert found is not None
    assert found.shape == (12, 12, 4)
    assert found.stored is None
    rows = {(p.name.split(".")[-2], p.expert): (p.first, p.last) for p in found.pieces}
    assert rows["w1", 11] == (0, 6)
    assert rows["w3", 11] == (6, 12)
    lacking = dict(list(shapes.items())[:-1])
    assert names_of(config, **lacking).find("model.layers.1.mlp.experts.gate_up_proj") is None


def test_experts_whose_names_are_changed_by_regular_expressions() -> None:
    config = {"model_type": "deepseek_v4"}
    shapes = {
        f"layers.3.ffn.experts.{expert}.{name}.weight": shape
        for expert in range(4)
        for name, shape in {"w1": (6, 4), "w2": (4, 6), "w3": (6, 4)}.items()
    }
    names = names_of(config, **shapes)
    up, down = (names.find(f"model.layers.3.mlp.experts.{name}") for name in ("gate_up_proj", "down_proj"))
    assert up is not None
    assert down is not None
    assert (up.shape, down.shape) == ((4, 12, 4), (4, 4, 6))
    assert [piece.expert for piece in down.pieces] == [0, 1, 2, 3]


def test_what_transformers_splits_is_said() -> None:
    names = names_of({"model_type": "lara_mini"}, **{"model.layers.0.linear_attn.in_proj.weight": (24, 8)})
    assert names.find("model.layers.0.linear_attn.in_proj_z.weight") is None
    said = names.why_absent("model.layers.0.linear_attn.in_proj_z.lora_A.weight")
    assert "from model.layers.0.linear_attn.in_proj.weight and its like (Split)" in said
    assert "merge_and_unload" in said
    assert names.why_absent("model.layers.0.mlp.x.weight") == "model.layers.0.mlp.x: the base has no such tensor"


@pytest.mark.parametrize(
    ("config", "head", "embedding"),
    [
        ({}, "lm_head.weight", "model.embed_tokens.weight"),
        ({"model_type": "biogpt"}, "output_projection.weight", "biogpt.embed_tokens.weight"),
        ({"architectures": ["RwkvForCausalLM"]}, "head.weight", "rwkv.embeddings.weight"),
        ({"architectures": ["Unheard", "CTRLLMHeadModel"]}, "lm_head.weight", "transformer.w.weight"),
    ],
)
def test_heads_and_embeddings(config: dict[str, Any], head: str, embedding: str) -> None:
    names = names_of(config)
    assert names.is_head(head)
    assert names.is_embedding(embedding)
    assert not names.is_head(embedding)
    assert not names.is_embedding(head)
    for inner in ("rwkv.blocks.0.attention.output.weight", "model.layers.61.embed_tokens.weight"):
        assert not names.is_head(inner)
        assert not names.is_embedding(inner)


def test_ties_of_an_unknown_architecture() -> None:
    assert names_of({"architectures": ["UnheardForCausalLM"], "model_type": "unheard"}).ties is None


def test_an_adapter_of_a_vision_model_saved_by_the_other_version(tmp_path: Path) -> None:
    """transformers 4 called it language_model.model.layers, transformers 5 model.language_model.layers."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    tower = {"vision_tower.layers.0.q_proj.weight": torch.randn(8, 8)}
    save_file(tower | {"language_model.model.layers.0.q_proj.weight": torch.ones(8, 8)}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "llava"}')
    halves = {f"base_model.model.model.language_model.layers.0.q_proj.lora_{h}.weight": torch.ones(8, 8) for h in "AB"}
    save_file(halves, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 8}')
    merge_checkpoint(base, [adapter], tmp_path / "merged")
    merged = load_all(tmp_path / "merged")
    assert torch.equal(merged["language_model.model.layers.0.q_proj.weight"], torch.full((8, 8), 9.0))
    assert torch.equal(merged["vision_tower.layers.0.q_proj.weight"], tower["vision_tower.layers.0.q_proj.weight"])
