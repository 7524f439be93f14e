"""The plan uses every adapter tensor once and refuses by name what it cannot do."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import random_model

from ollamake.adapter import Adapter, read_adapter
from ollamake.checkpoint import Checkpoint, read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.merge_plan import plan_merge
from ollamake.safetensors_header import SafetensorsHeader, TensorEntry, tensor_bytes


def plan(base: Path, adapter: Path) -> dict[str, Any]:
    return plan_merge(read_checkpoint(str(base), "models.m.base"), read_adapter(adapter), "auto")


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


REFUSED = {
    "peft_type LOHA": ({"peft_type": "LOHA"}, ["'LOHA'", "merge_and_unload"]),
    "no peft_type": ({"peft_type": None}, ["peft_type is None"]),
    "use_dora": ({"use_dora": True}, ["use_dora: DoRA"]),
    "lora_bias": ({"lora_bias": True}, ["lora_bias"]),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, ["fan_in_fan_out", "Conv1D"]),
    "bias": ({"bias": "all"}, ["bias: trained biases"]),
    "trainable tokens": ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
    "target_parameters": ({"target_parameters": ["experts"]}, ["target_parameters", "MoE"]),
    "layer_replication": ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
    "aLoRA": ({"alora_invocation_tokens": [1]}, ["alora_invocation_tokens"]),
    "pissa": ({"init_lora_weights": "pissa"}, ["'pissa'", "changed the base weights"]),
    "olora": ({"init_lora_weights": "olora"}, ["'olora'"]),
    "loftq": ({"init_lora_weights": "loftq"}, ["'loftq'"]),
    "option of the future": ({"use_quantum_lora": True}, ["use_quantum_lora: set to True"]),
    "rank of another adapter": ({"r": 8}, ["rank 4, adapter_config.json says 8"]),
    "bad pattern": ({"rank_pattern": {"(": 4}}, ["'('", "not a regular expression"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_are_refused_by_name(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], case: str
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    changes, words = REFUSED[case]
    change_config(adapter, **changes)
    with pytest.raises(OllamakeError) as caught:
        plan(base, adapter)
    for word in words:
        assert word in str(caught.value)


def test_every_field_of_the_pinned_peft_is_known_or_refused(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    """A plain adapter passes with all the fields that peft writes."""
    base = make_base()
    assert any(t["edit"] for s in plan(base, make_adapter(base))["shards"] for t in s["tensors"])


def test_an_adapter_for_another_base(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(make_base())
    other = tmp_path / "other"
    model = random_model("qwen2", torch.bfloat16, True)
    model.config.hidden_size = 32
    type(model)(model.config).save_pretrained(other)
    with pytest.raises(OllamakeError) as caught:
        plan(other, adapter)
    message = str(caught.value)
    assert "does not fit the base" in message
    assert re.search(r"the update is \[\d+, \d+\], the base has \[\d+, \d+\]", message)
    assert "more" in message
    assert "It was trained on" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}),
            "the base has no such tensor",
        ),
        (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "without its other half"),
        (lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(4)}), "not of a kind"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(64)}), "not of a kind"),
        (lambda t: t.clear(), "no tensors"),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}),
            "two tensors of the adapter are for the same place",
        ),
    ],
)
def test_tensors_left_over_or_missing(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], change: Any, words: str
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    change_tensors(adapter, change)
    with pytest.raises(OllamakeError, match=words):
        plan(base, adapter)


@pytest.mark.parametrize("said", [True, False])
def test_tied_head_is_refused(make_base: Callable[..., Path], make_adapter: Callable[..., Path], said: bool) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    if not said:
        config = json.loads((base / "config.json").read_text())
        del config["tie_word_embeddings"]
        (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(OllamakeError, match="embedding and as output head at once"):
        plan(base, adapter)


def test_resized_embedding_is_refused_with_both_shapes(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    base = make_base("llama", torch.bfloat16, False)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    change_tensors(adapter, lambda t: t.update({k: torch.ones(170, 64) for k in t if "embed_tokens" in k}))
    with pytest.raises(OllamakeError, match=r"the adapter saved \[170, 64\], the base has \[160, 64\]"):
        plan(base, adapter)


def test_base_problems(make_base: Callable[..., Path]) -> None:
    base = make_base()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(OllamakeError, match=r"bitsandbytes weights.*16-bit"):
        read_checkpoint(str(base), "key")
    (base / "config.json").write_text(json.dumps(config))
    index = json.loads((base / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"]["extra"] = index["weight_map"][name]
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OllamakeError, match="disagree on 1 tensors; the index has 'extra'"):
        read_checkpoint(str(base), "key")


def test_a_truncated_shard(make_base: Callable[..., Path]) -> None:
    base = make_base()
    shard = sorted(base.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        OllamakeError, match=rf"{shard.name} is truncated or damaged: it has \d+ bytes, its header describes"
    ):
        read_checkpoint(str(base), "key")


def test_a_plan_of_70b_size_is_a_matter_of_seconds(tmp_path: Path) -> None:
    """80 layers in 30 shards, every linear layer with an update: bounded by the look-ups being linear, not quadratic."""
    shapes = {"self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (1024, 8192), "self_attn.v_proj": (1024, 8192),
              "self_attn.o_proj": (8192, 8192), "mlp.gate_proj": (28672, 8192), "mlp.up_proj": (28672, 8192),
              "mlp.down_proj": (8192, 28672)}  # fmt: skip
    names = [(f"model.layers.{layer}.{module}", shape) for layer in range(80) for module, shape in shapes.items()]

    def header(path: str, tensors: list[tuple[str, tuple[int, ...]]]) -> SafetensorsHeader:
        entries, offset = [], 0
        for name, shape in tensors:
            end = offset + tensor_bytes("BF16", shape)
            entries.append(TensorEntry(name, "BF16", shape, offset, end))
            offset = end
        return SafetensorsHeader(Path(path), tuple(entries), 8)

    weights = [(f"{name}.weight", shape) for name, shape in names]
    shards = tuple(header(f"shard-{n}", weights[n::30]) for n in range(30))
    halves = [(f"base_model.model.{name}.lora_A.weight", (16, shape[1])) for name, shape in names]
    halves += [(f"base_model.model.{name}.lora_B.weight", (shape[0], 16)) for name, shape in names]
    adapter = Adapter(tmp_path, {"r": 16, "lora_alpha": 32}, header("adapter", halves))
    start = time.process_time()
    result = plan_merge(Checkpoint(tmp_path, {}, shards), adapter, "auto")
    assert sum(t["edit"] is not None for s in result["shards"] for t in s["tensors"]) == 560
    print(f"planned in {time.process_time() - start:.2f} s of processor time")
