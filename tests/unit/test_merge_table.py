"""Architectures times options: what is merged equals peft's model, in its logits and, in float64, in its weights.

The truth is the unmerged model as it was trained. peft's own merge is no truth for tied embeddings: where only one of
embedding and head has an update, merge_and_unload changes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import assert_rounded_once, load_all, merge_checkpoint
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
)
from small_models import EMBEDDINGS, EXPERTS, FAMILIES, HEADS, load_base, logits_of, lora, random_model, save_adapter

from ollamake.errors import OllamakeError

LINEAR = {"gpt2": ["c_attn", "mlp.c_proj"], "gpt-neox": ["query_key_value", "dense_4h_to_h"],
          "falcon": ["query_key_value", "dense_4h_to_h"], "phi3": ["qkv_proj", "down_proj"],
          "deepseek-v3": ["o_proj", "kv_b_proj"], "gptj": ["q_proj", "out_proj"], "biogpt": ["q_proj", "out_proj"],
          "rwkv": ["feed_forward.value", "attention.output"], "bigbird-pegasus": ["q_proj", "fc2"]}  # fmt: skip
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def options_for(family: str, tied: bool) -> Iterator[tuple[str, Callable[[], PeftConfig], dict[str, Any]]]:
    """Yield (title, maker of the configuration, options of save_adapter) of all that an architecture can carry."""
    embedding, head = EMBEDDINGS.get(family, "embed_tokens"), HEADS.get(family, "lm_head")
    linear = LINEAR.get(family, ["q_proj", "o_proj"])
    yield "all linear", lora(), {}
    yield "embedding", lora(target_modules=[embedding]), {}
    yield "head", lora(target_modules=[head]), {}
    yield "embedding and head", lora(target_modules=[embedding, head, *linear]), {}
    yield "head as trained with the embedding", lora(target_modules=[head], ensure_weight_tying=True), {}
    yield "embedding saved", lora(modules_to_save=[embedding]), {}
    yield "head saved", lora(modules_to_save=[head]), {}
    yield "vocabulary grown", lora(target_modules=linear), {"rows": 170}
    yield "vocabulary grown and trained", lora(modules_to_save=[embedding, head]), {"rows": 170}
    yield "vocabulary grown, LoRA on it", lora(target_modules=[embedding, head]), {"rows": 170}
    yield "dora of embedding and head", lora(target_modules=[embedding, head], use_dora=True), {}
    yield "another method on the head", lambda: LoHaConfig(target_modules=[head], r=4), {}
    yield "one projection for head and layers", lambda: VeraConfig(target_modules=[head, *linear]), {}
    if tied and family == "gptj":
        return  # peft's layers for a tied head forget its bias
    if family != "rwkv":  # peft does not see its tie
        yield "both saved as one", lora(modules_to_save=[embedding, head], ensure_weight_tying=True), {}
    yield "tokens", lora(trainable_token_indices=list(range(0, 160, 3))), {}
    yield "tokens of a grown vocabulary", lora(trainable_token_indices=[3, 7, 165]), {"rows": 170}
    if tied:
        return
    yield "rslora", lora(use_rslora=True, r=16), {}
    yield (
        "patterns",
        lora(
            target_modules=linear,
            rank_pattern={linear[0]: 8, rf"1\..*{linear[1]}": 2},
            alpha_pattern={rf"1\..*{linear[1]}": 32, rf".*\.0\..*{linear[0]}": 3},
        ),
        {},
    )
    yield "some layers", lora(target_modules=linear, layers_to_transform=[1]), {}
    yield "without some", lora(exclude_modules=[linear[0]]), {}
    yield "all biases", lora(bias="all"), {}
    yield "biases of LoRA", lora(target_modules=linear, bias="lora_only"), {}
    yield "bin", lora(), {"safetensors": False}
    yield "dora", lora(target_modules=linear, use_dora=True), {}
    yield "dora of the embedding", lora(target_modules=[embedding], use_dora=True), {}
    yield "pissa", lora(target_modules=linear, init_lora_weights="pissa"), {}
    if family == "rwkv":
        return  # its layers add so little to the logits that the changes of the next ones do not show
    yield "ia3", lambda: IA3Config(target_modules=linear, feedforward_modules=[linear[1]]), {}
    yield "vera", lambda: VeraConfig(target_modules=linear, save_projection=False), {}
    yield "tokens alone", lambda: TrainableTokensConfig(token_indices=[1, 7, 14], target_modules=[embedding]), {}
    if family in ("gpt2", "gpt-neox"):
        yield "lora_bias", lora(target_modules=linear, lora_bias=True), {}
    if family == "gpt2":
        yield "square Conv1D and a head", lora(target_modules=["c_attn", "c_proj", head]), {}
        yield "norms", lambda: LNTuningConfig(target_modules=["ln_1", "ln_f"]), {}
    if family in EXPERTS:
        yield "experts", lora(target_modules=[], target_parameters=PARAMETERS), {}
        yield "half of the experts' matrices", lora(target_modules=linear, target_parameters=PARAMETERS[1:]), {}
        yield "router", lora(target_modules=[], target_parameters=["gate.weight", "router.weight"]), {}


CASES = [
    pytest.param(family, tied, make, options, id=f"{family}-{'tied' if tied else 'untied'}-{title}")
    for family in FAMILIES
    for tied in (False, True)
    for title, make, options in options_for(family, tied)
]


@pytest.fixture(scope="module")
def saved_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Return a function that saves a random base of a family, once, in several shards."""
    saved: dict[tuple[str, bool], Path] = {}

    def make(family: str, tied: bool) -> Path:
        if (family, tied) not in saved:
            folder = saved[family, tied] = tmp_path_factory.mktemp(f"{family}-{tied}")
            random_model(family, torch.float32, tied).save_pretrained(folder, max_shard_size="120KB")
            assert len(list(folder.glob("*.safetensors"))) > 1
        return saved[family, tied]

    return make


@pytest.mark.parametrize(("family", "tied", "make", "options"), CASES)
def test_logits_are_those_of_the_trained_model(
    saved_base: Callable[[str, bool], Path],
    tmp_path: Path,
    family: str,
    tied: bool,
    make: Callable[[], PeftConfig],
    options: dict[str, Any],
) -> None:
    base = saved_base(family, tied)
    trained = save_adapter(base, tmp_path / "adapter", make(), **options)
    truth, before = logits_of(trained), logits_of(load_base(base, torch.float32))
    plan = merge_checkpoint(base, [tmp_path / "adapter"], tmp_path / "merged")
    merged, found = torch_load(tmp_path / "merged")
    assert not found["missing_keys"], found
    assert not found["unexpected_keys"], found
    scale = float(truth.abs().max())
    assert float((logits_of(merged) - truth).abs().max()) < 1e-4 * scale
    assert float((truth[..., : before.shape[-1]] - before).abs().max()) > 1e-3 * scale, "the adapter changed nothing"
    assert merged.config.get_text_config().vocab_size == truth.shape[-1]
    untouched = [t for s in plan["shards"] for t in s["tensors"] if not t["edits"] and t["name"] == t["source"]]
    bases, ours = load_all(base), load_all(tmp_path / "merged")
    assert all(torch.equal(bases[tensor["name"]], ours[tensor["name"]]) for tensor in untouched)


def torch_load(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return model, found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", ["plain", "experts", "rslora and norms"])
def test_weights_are_peft_in_float64_rounded_once(
    saved_base: Callable[[str, bool], Path], tmp_path: Path, family: str, option: str
) -> None:
    """A bfloat16 base: every edited tensor within half a unit in the last place of float16, the others bit for bit."""
    if option == "experts" and family not in EXPERTS:
        make = lora(bias="all")
    elif option == "experts":
        make = lora(target_modules=[], target_parameters=PARAMETERS)
    else:
        make = lora(use_rslora=option != "plain", modules_to_save=None if option == "plain" else norms_of(family))
    base = tmp_path / "base"
    random_model(family, torch.bfloat16, False).save_pretrained(base, max_shard_size="120KB")
    save_adapter(base, tmp_path / "adapter", make(), size=0.01)
    plan = merge_checkpoint(base, [tmp_path / "adapter"], tmp_path / "merged")
    model = load_base(base, torch.float64)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter", autocast_adapter_dtype=False).to(torch.float64)
    adapted.merge_and_unload().save_pretrained(tmp_path / "exact")
    exact, before, ours = load_all(tmp_path / "exact"), load_all(base), load_all(tmp_path / "merged")
    edited = {t["name"] for s in plan["shards"] for t in s["tensors"] if t["edits"]}
    assert edited
    assert ours.keys() == before.keys() == exact.keys()
    for name, tensor in ours.items():
        if name in edited:
            assert tensor.dtype == torch.float16
            update = (exact[name] - before[name].double()).abs()
            # rank 4 and sums of products some ten times their result: the operands' size is at most this.
            assert_rounded_once(tensor, exact[name], name, before[name].double().abs() + 10 * update.max())
        else:
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])
            assert torch.equal(before[name].double(), exact[name]), f"peft changed {name}, the plan does not"


def norms_of(family: str) -> list[str]:
    special = {"gpt2": ["ln_1", "ln_f"], "gpt-neox": ["final_layer_norm"], "rwkv": ["ln1", "ln_out"], "biogpt": ["layer_norm"],
               "bigbird-pegasus": ["final_layer_norm"]}  # fmt: skip
    return special.get(family, ["ln_f"] if family in ("falcon", "gptj", "exaone") else ["norm"])


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gpt2"])
def test_adapters_are_added_with_their_weights(
    saved_base: Callable[[str, bool], Path], tmp_path: Path, family: str
) -> None:
    base, weights = saved_base(family, False), (0.7, -0.4)
    adapters = [tmp_path / "one", tmp_path / "two"]
    for seed, adapter in enumerate(adapters):
        save_adapter(base, adapter, lora(r=4 + 2 * seed)(), seed=seed)
    trained = PeftModel.from_pretrained(load_base(base, torch.float32), adapters[0], adapter_name="one")
    trained.load_adapter(adapters[1], "two")
    trained.base_model.set_adapter(["one", "two"])
    for module in trained.modules():
        for name, weight in zip(("one", "two"), weights, strict=True):
            if isinstance(getattr(module, "scaling", None), dict) and name in module.scaling:
                module.scaling[name] *= weight
    merge_checkpoint(base, adapters, tmp_path / "merged", weights=weights)
    truth = logits_of(trained)
    ours = logits_of(load_base(tmp_path / "merged", torch.float32))
    assert float((ours - truth).abs().max()) < 1e-4 * float(truth.abs().max())


@pytest.mark.parametrize(("family", "prefix"), [("mixtral", "block_sparse_moe.experts"), ("qwen3-moe", "mlp.experts")])
def test_experts_trained_one_by_one(
    saved_base: Callable[[str, bool], Path], tmp_path: Path, family: str, prefix: str
) -> None:
    """Adapters of transformers 4 name each expert's matrices: they are compared with float64 products of our own."""
    from safetensors.torch import save_file

    base, before = saved_base(family, False), load_all(saved_base(family, False))
    names = [name.removesuffix(".weight") for name in before if f"{prefix}." in name]
    torch.manual_seed(0)
    halves = {}
    for name in names:
        rows, columns = before[f"{name}.weight"].shape
        halves[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, columns)
        halves[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 4) * 0.01
    (tmp_path / "adapter").mkdir()
    save_file(halves, tmp_path / "adapter/adapter_model.safetensors")
    LoraConfig(r=4, lora_alpha=8, target_modules=["w1"]).save_pretrained(tmp_path / "adapter")
    merge_checkpoint(base, [tmp_path / "adapter"], tmp_path / "merged")
    ours = load_all(tmp_path / "merged")
    for name in names:
        a, b = (halves[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
        exact = before[f"{name}.weight"].double() + 2 * (b @ a)
        operands = before[f"{name}.weight"].double().abs() + 2 * (b.abs() @ a.abs())
        assert_rounded_once(ours[f"{name}.weight"], exact, name, operands)


@pytest.mark.parametrize(
    ("family", "module"), [("mixtral", "block_sparse_moe.experts.0.w1"), ("qwen3-moe", "mlp.experts.0.up_proj")]
)
def test_single_experts_where_the_base_has_them_in_one_tensor(tmp_path: Path, family: str, module: str) -> None:
    """As transformers 5 saves a base with save_original_format=False: the message says which base it takes."""
    from safetensors.torch import save_file

    random_model(family, torch.float32, False).save_pretrained(tmp_path / "base", save_original_format=False)
    name = f"base_model.model.model.layers.1.{module}"
    (tmp_path / "adapter").mkdir()
    save_file(
        {f"{name}.lora_A.weight": torch.ones(4, 64), f"{name}.lora_B.weight": torch.ones(24, 4)},
        tmp_path / "adapter/adapter_model.safetensors",
    )
    LoraConfig(r=4, target_modules=[module.rpartition(".")[2]]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(OllamakeError, match=r"layers\.1\.mlp\.experts\.\w+_proj\. Give it as published") as refused:
        merge_checkpoint(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
    assert f"model.layers.1.{module}: the base has no such tensor; it has all experts" in str(refused.value)


def test_a_parameter_with_one_expert(tmp_path: Path) -> None:
    """Shared experts may be a stack of one, which peft takes for a plain matrix."""
    from peft import get_peft_model
    from safetensors.torch import save_file

    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = torch.nn.Parameter(torch.randn(1, 12, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.down_proj[0].T

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"shared_experts": Shared()})
    (tmp_path / "base").mkdir()
    save_file({"shared_experts.down_proj": model["shared_experts"].down_proj.data}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    config = LoraConfig(r=4, target_modules=[], target_parameters=["shared_experts.down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_checkpoint(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
    exact = adapted.merge_and_unload()["shared_experts"].down_proj
    assert torch.allclose(load_all(tmp_path / "merged")["shared_experts.down_proj"], exact, atol=1e-6)
