"""The plan uses every adapter tensor once and refuses by name what it cannot do."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from merging import merge_all, plan_of
from safetensors.torch import load_file, save_file
from small_models import lora, random_model, save_adapter

from ollamake.adapter import Adapter, read_adapter
from ollamake.checkpoint import Checkpoint, read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.merge_plan import _require_all_used, plan_merge
from ollamake.peft_methods import NOT_MERGED
from ollamake.safetensors_header import SafetensorsHeader, TensorEntry, tensor_bytes


def plan(base: Path, adapter: Path) -> dict[str, Any]:
    return plan_merge(read_checkpoint(str(base), "models.m.base"), [read_adapter(adapter)], "auto")


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


REFUSED = {
    "no peft_type": ({"peft_type": None}, ["peft_type is None", "LOHA"]),
    "layer_replication": ({"layer_replication": [[0, 2]]}, ["layer_replication repeats layers", "deeper model"]),
    "aLoRA": ({"alora_invocation_tokens": [1]}, ["alora_invocation_tokens", "switched on within a prompt"]),
    "arrow": ({"arrow_config": {"top_k": 2}}, ["Arrow", "Merge one of the adapters"]),
    "megatron": ({"megatron_config": {"a": 1}}, ["megatron_config", "Convert base and adapter"]),
    "pissa, random": ({"init_lora_weights": "pissa_niter_4"}, ["'pissa_niter_4'", "path_initial_model_for_weight"]),
    "corda": ({"init_lora_weights": "corda"}, ["'corda'", "residual model"]),
    "loftq": (
        {"init_lora_weights": "loftq"},
        ["'loftq'", "changed the base weights", "fit it. So give the changed base"],
    ),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, ["'lora_ga'", "path_initial_model_for_weight"]),
    "option of the future": ({"use_quantum_lora": True}, ["use_quantum_lora (set to True)", "merge_and_unload"]),
    "rank of another adapter": ({"r": 8}, ["rank 4, adapter_config.json says 8"]),
    "bad pattern": ({"rank_pattern": {"(": 4}}, ["'('", "not a regular expression"]),
} | {kind: ({"peft_type": kind}, [kind, *reason.split(".")[:1]]) for kind, reason in NOT_MERGED.items()}


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
    assert any(t["edits"] for s in plan(base, make_adapter(base))["shards"] for t in s["tensors"])


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


def lora_of(module: str, rows: int = 96, columns: int = 64) -> dict[str, torch.Tensor]:
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": torch.ones(4, columns), f"{name}.lora_B.weight": torch.ones(rows, 4)}


UP = "model.layers.0.mlp.up_proj"
LEFT_OVER: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "another layer": (
        lambda t: t.update(lora_of("model.layers.9.mlp.up_proj")),
        r"layers\.9\.mlp\.up_proj: the base has no such",
    ),
    "half": (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "lora_A without its other half"),
    "magnitude alone": (
        lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(4)}),
        "x: has a magnitude",
    ),
    "unknown tensor": (
        lambda t: t.update({"base_model.model.model.x": torch.ones(4)}),
        "model.x: the base has no such",
    ),
    "norm of another size": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(65)}),
        r"norm.weight: the adapter saved \[65\], the base has \[64\]",
    ),
    "nothing": (lambda t: t.clear(), "no tensors"),
    "the same place": (
        lambda t: t.update({f"{UP}.lora_A.weight": torch.ones(4, 64)}),
        "two tensors of the adapter are for the same place",
    ),
    "bias that the base has not": (
        lambda t: t.update({f"base_model.model.{UP}.lora_B.bias": torch.ones(96)}),
        "lora_bias needs a bias",
    ),
    "integers": (
        lambda t: t.update(lora_of(UP) | {f"base_model.model.{UP}.lora_A.weight": torch.ones(4, 64).int()}),
        "dtypes I32",
    ),
    "a vector": (
        lambda t: t.update(lora_of("model.norm", 64)),
        r"norm: the update is \[64, 64\], the base has \[64\]",
    ),
    "halves of different ranks": (
        lambda t: t.update({f"base_model.model.{UP}.lora_B.weight": torch.ones(96, 8)}),
        r"lora_A \[4, 64\] and lora_B \[96, 8\] have different ranks",
    ),
    "magnitudes of another size": (
        lambda t: t.update({f"base_model.model.{UP}.lora_magnitude_vector": torch.ones(5)}),
        r"up_proj: magnitudes \[5\] of \[96, 64\]",
    ),
    "tokens that are not named": (
        lambda t: t.update({"base_model.model.model.embed_tokens.trainable_tokens_delta": torch.ones(2, 64)}),
        "2 trained tokens, trainable_token_indices names 0",
    ),
    "parameters that are not named": (
        lambda t: t.update(lora_of(f"{UP}.x") | lora_of(f"{UP}.x.base_layer")),
        "updates .* of target_parameters, the base has no such parameter",
    ),
    "a tied head of another size": (
        lambda t: t.update(lora_of("lm_head", 160, 32)),
        r"lm_head.weight: the update is \[160, 32\], the base's tied embedding is \[160, 64\]",
    ),
    "a name with and without its wrapper": (
        lambda t: t.update(lora_of(UP.removeprefix("model."))),
        r"two tensors reach model\.layers\.0\.mlp\.up_proj\.weight in the same way \(low_rank\)",
    ),
}


@pytest.mark.parametrize("case", LEFT_OVER)
def test_tensors_left_over_or_missing(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], case: str
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    change, words = LEFT_OVER[case]
    change_tensors(adapter, change)
    with pytest.raises(OllamakeError, match=words):
        plan(base, adapter)


def test_trained_tokens_that_the_vocabulary_has_not(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    base = make_base()
    adapter = make_adapter(base, trainable_token_indices=[1, 2])
    change_config(adapter, trainable_token_indices=[1, 160])
    with pytest.raises(OllamakeError, match=r"trained tokens \[2, 64\] up to 160 of \[160, 64\]"):
        plan(base, adapter)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "cannot be read as JSON"), ("[]", "is not the configuration of a PEFT adapter")]
)
def test_a_configuration_that_is_none(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], content: str, words: str
) -> None:
    adapter = make_adapter(make_base())
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(OllamakeError, match=words):
        read_adapter(adapter)


def test_an_update_of_integers(tmp_path: Path) -> None:
    """Such as the packed weights of a quantizer that config.json says nothing of."""
    base, adapter = put_together(tmp_path, {"peft_type": "LORA", "r": 4}, **{"lora_A.weight": torch.ones(4, 4)})
    save_file({f"{UP}.weight": torch.ones(6, 4, dtype=torch.int8)}, base / "model.safetensors")
    save_file(lora_of(UP, 6, 4), adapter / "adapter_model.safetensors")
    with pytest.raises(OllamakeError, match=r"up_proj\.weight: dtype I8; expected floating point"):
        plan(base, adapter)


def test_the_proof_that_nothing_is_left_over(make_base: Callable[..., Path], make_adapter: Callable[..., Path]) -> None:
    adapter = read_adapter(make_adapter(make_base()))
    with pytest.raises(OllamakeError, match=r"28 tensors reach nothing in the base: .* and 22 more"):
        _require_all_used({}, [adapter], [set()])


@pytest.mark.parametrize("said", [True, False])
def test_an_edit_of_one_of_a_tied_pair_parts_them(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], said: bool
) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    if not said:
        config = json.loads((base / "config.json").read_text())
        del config["tie_word_embeddings"]
        (base / "config.json").write_text(json.dumps(config))
    planned = plan(base, adapter)
    assert planned["config"] == {"tie_word_embeddings": False}
    tensors = {t["name"]: t for s in planned["shards"] for t in s["tensors"]}
    head = tensors["lm_head.weight"]
    assert (head["source"], head["edits"], head["stored"]) == ("model.embed_tokens.weight", [], "BF16")


def test_a_switch_that_parts_more_than_embedding_and_head(tmp_path: Path) -> None:
    """BERT ties a bias, too: with tie_word_embeddings false, transformers would look for one that is not stored."""
    config = transformers.BertConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                                     vocab_size=160, is_decoder=True, architectures=["BertLMHeadModel"])  # fmt: skip
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "adapter", lora(target_modules=["word_embeddings"])())
    with pytest.raises(OllamakeError, match=r"ties along with cls\.predictions\.decoder\.bias.*ensure_weight_tying"):
        plan(tmp_path / "base", tmp_path / "adapter")


def test_a_vocabulary_that_grew_in_one_of_two_places(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    base = make_base("llama", torch.bfloat16, False)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    change_tensors(adapter, lambda t: t.update({k: torch.ones(170, 64) for k in t if "embed_tokens" in k}))
    with pytest.raises(OllamakeError, match=r"lm_head.weight 160 rows, model.embed_tokens.weight 170 rows.*saves both"):
        plan(base, adapter)


def test_a_tied_vocabulary_that_grew_without_its_head(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    change_tensors(adapter, lambda t: t.update({k: torch.ones(170, 64) for k in t if "embed_tokens" in k}))
    with pytest.raises(OllamakeError, match=r"an embedding of 170 rows, but no head of that size.*ensure_weight_tying"):
        plan(base, adapter)


def put_together(folder: Path, config: dict[str, Any], **tensors: torch.Tensor) -> tuple[Path, Path]:
    """Save a base whose gate and up are one parameter in memory, and an adapter with these tensors for that one."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "minimax_m3_vl"}))
    halves = {f"model.layers.0.mlp.{name}_proj.weight": torch.randn(6, 4) for name in ("gate", "up")}
    save_file(halves, base / "model.safetensors")
    module = "base_model.model.model.layers.0.mlp.gate_up_proj"
    save_file({f"{module}.{name}": tensor for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return base, adapter


def test_an_update_of_what_the_base_stores_in_two_tensors(tmp_path: Path) -> None:
    a, b = torch.randn(2, 4), torch.randn(12, 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    base, adapter = put_together(tmp_path, config, **{"lora_A.weight": a, "lora_B.weight": b})
    before = load_file(base / "model.safetensors")
    merge_all(plan(base, adapter), tmp_path / "merged")
    merged = load_file(tmp_path / "merged/model-00001-of-00001.safetensors")
    for name, rows in (("gate", slice(0, 6)), ("up", slice(6, 12))):
        name = f"model.layers.0.mlp.{name}_proj.weight"
        assert torch.allclose(merged[name], before[name] + b[rows] @ a, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"peft_type": "LOHA", "r": 2}, {"hada_w1_a": torch.ones(12, 2)}, "peft's layer needs it whole"),
        ({"peft_type": "LORA", "r": 2}, {"weight": torch.ones(12, 4)}, "saved whole, but the base stores it in 2"),
    ],
)
def test_what_must_be_whole_is_refused_in_two_tensors(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], words: str
) -> None:
    base, adapter = put_together(tmp_path, config, **tensors)
    with pytest.raises(OllamakeError, match=words):
        plan(base, adapter)


def test_twins_that_differ_stop_the_merge(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    adapter = make_adapter(base, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    change_tensors(adapter, lambda t: t["base_model.model.lm_head.weight"].add_(1))
    with pytest.raises(OllamakeError, match=r"lm_head\.weight were trained as one .* but differ"):
        merge_all(plan(base, adapter), tmp_path / "merged")


def test_two_adapters_that_resize(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, False)
    for number in (1, 2):
        save_adapter(base, tmp_path / f"a{number}", lora()(), rows=170)
    with pytest.raises(OllamakeError, match="changes the number of its rows, and another edits it too"):
        plan_of(base, tmp_path / "a1", tmp_path / "a2")


def test_an_ambiguous_pattern_is_said(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """peft saves patterns sorted: which came first in training is lost."""
    base = make_base()
    plan(base, make_adapter(base, alpha_pattern={"up_proj": 3, "mlp.up_proj": 5}))
    assert "several patterns of alpha_pattern match model.layers.0.mlp.up_proj, with the values 5, 3" in caplog.text


@pytest.mark.parametrize(
    ("method", "name", "original"),
    [
        ("bitsandbytes", "Qwen2.5-7B-Instruct-bnb-4bit", "'Qwen2.5-7B-Instruct'"),
        ("gptq", "org/Qwen2.5-32B-GPTQ-Int4", "'org/Qwen2.5-32B'"),
        ("awq", "model-AWQ", "'model'"),
        ("mxfp4", "gpt-oss-20b", "16-bit"),
        ("compressed-tensors", "Llama-3-8B-FP8", "'Llama-3-8B'"),
    ],
)
def test_quantized_bases_are_refused_naming_the_original(
    make_base: Callable[..., Path], method: str, name: str, original: str
) -> None:
    base = make_base()
    config = json.loads((base / "config.json").read_text())
    changed = config | {"quantization_config": {"quant_method": method}, "_name_or_path": name}
    (base / "config.json").write_text(json.dumps(changed))
    with pytest.raises(OllamakeError, match=f"holds {method} weights") as caught:
        read_checkpoint(str(base), "key")
    assert original in str(caught.value)


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


def test_a_tensor_in_two_shards(make_base: Callable[..., Path]) -> None:
    base = make_base()
    one, other = sorted(base.glob("*.safetensors"))[:2]
    save_file(load_file(one) | load_file(other), other)
    with pytest.raises(OllamakeError, match="tensors stand in more than one shard"):
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
    result = plan_merge(Checkpoint(tmp_path, {}, shards), [adapter], "auto")
    assert sum(bool(t["edits"]) for s in result["shards"] for t in s["tensors"]) == 560
    print(f"planned in {time.process_time() - start:.2f} s of processor time")
