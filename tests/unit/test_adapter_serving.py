"""What can be served as an adapter beside the base's GGUF, and each reason why something cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merging import plan_of
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig
from small_models import lora, random_model, save_adapter

from ollamake.adapter_serving import ARCHITECTURES, require_servable
from ollamake.configuration import read_configuration
from ollamake.disk_peak import SERVER_COPIES, Registration, adapter_peak
from ollamake.errors import OllamakeError
from ollamake.job_needs import quantized_bytes

SCHEMA = Path(__file__).parents[2] / "config/schemas/config.schema.yaml"


def pair(folder: Path, family: str, config: PeftConfig, **options: Any) -> tuple[Path, Path]:
    """Save a random model and an adapter for it."""
    base, adapter = folder / "base", folder / "adapter"
    tied = options.pop("tied", False)
    random_model(family, torch.float32, tied).save_pretrained(base)
    save_adapter(base, adapter, config, **options)
    return base, adapter


def served(base: Path, adapter: Path, version: str | None = None) -> str:
    return require_servable(plan_of(base, adapter), base, adapter, version, "models.m.serve")


@pytest.mark.parametrize(
    ("family", "architecture"), [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("phi3", "phi3")]
)
def test_what_can_be_served(tmp_path: Path, family: str, architecture: str) -> None:
    pattern = {"down_proj": 2}
    config = lora(use_rslora=True, rank_pattern=pattern, alpha_pattern={"o_proj": 3})
    assert served(*pair(tmp_path, family, config())) == architecture


REFUSED: dict[str, tuple[str, Callable[[], PeftConfig], dict[str, Any], str]] = {
    "DoRA": ("llama", lora(use_dora=True), {}, "DoRA: its magnitudes depend on the base's weights"),
    "an embedding saved": (
        "llama", lora(modules_to_save=["embed_tokens"]), {}, r"model\.embed_tokens\.weight is saved whole"),
    "tokens": ("llama", lora(trainable_token_indices=[1, 2]), {}, r"model\.embed_tokens\.weight has trained tokens"),
    "a grown vocabulary": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"]), {"rows": 170}, "vocab_size: 170"),
    "an update of the embedding": (
        "llama", lora(target_modules=["embed_tokens", "q_proj"]), {}, r"embed_tokens\.weight has an update"),
    "an update of the head": ("llama", lora(target_modules=["lm_head"]), {}, r"lm_head\.weight has an update"),
    "an update of a tied head": (
        "qwen2", lora(target_modules=["lm_head"]), {"tied": True}, r"lm_head\.weight has an update"),
    "norms saved": (
        "llama", lora(modules_to_save=["input_layernorm"]), {},
        r"model\.layers\.\*\.input_layernorm\.weight is trained whole \(modules_to_save or bias\)"),
    "biases": ("qwen2", lora(bias="all"), {}, r"q_proj\.bias is trained whole"),
    "biases of LoRA": ("qwen2", lora(target_modules=["q_proj"], lora_bias=True), {}, "lora_bias: a bias has no low-rank"),
    "IA3": (
        "llama", lambda: IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), {},
        "peft_type is IA3: a LoRA in a GGUF is two matrices"),
    "LoHa": ("llama", lambda: LoHaConfig(target_modules=["q_proj"], r=4), {}, "peft_type is LOHA"),
    "PiSSA": ("llama", lora(init_lora_weights="pissa"), {}, "init_lora_weights is 'pissa': it changed the base's weights"),
    "experts": (
        "qwen3-moe",
        lambda: LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]), {},
        "experts have updates: how they are stacked differs"),
    "Conv1D": ("gpt2", lora(target_modules=["c_attn"]), {}, r"c_attn\.weight is stored transposed \(Conv1D\)"),
    "latent attention": (
        "deepseek-v3", lora(target_modules=["kv_b_proj"]), {}, "of the architecture deepseek_v3 it is not known"),
    "recurrent layers": ("rwkv", lora(target_modules=["attention.output"]), {}, "of the architecture rwkv it is not known"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(tmp_path: Path, case: str) -> None:
    family, config, options, reason = REFUSED[case]
    base, adapter = pair(tmp_path, family, config(), **options)
    with pytest.raises(OllamakeError, match=reason) as raised:
        served(base, adapter)
    said = str(raised.value)
    assert said.startswith(f"models.m.serve: the adapter {adapter} cannot be served beside the base's GGUF:\n    ")
    assert said.endswith("\n  Set `serve: merged`, which adds the update to the weights.")
    # The same reason for many weights is said once.
    assert len(said.splitlines()) == len(set(said.splitlines()))


@pytest.mark.parametrize("version", ["0.17.4", "0.29.9"])
def test_an_architecture_that_ollama_ran_without_adapters(tmp_path: Path, version: str) -> None:
    base, adapter = pair(tmp_path, "qwen3", lora()())
    with pytest.raises(OllamakeError, match=f"Ollama {version} runs qwen3 in an engine without adapters"):
        served(base, adapter, version)
    # Built without a version it calls itself 0.0.0; where nothing is known, nothing is refused.
    assert {served(base, adapter, known) for known in ("0.30.0", "0.33.1", "1.0.0", "0.0.0", None)} == {"qwen3"}


def test_llama_has_adapters_in_each_version(tmp_path: Path) -> None:
    assert served(*pair(tmp_path, "llama", lora()()), "0.17.4") == "llama"


def tokenizer(folder: Path, tokens: list[str]) -> None:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")


def test_another_tokenizer(tmp_path: Path) -> None:
    base, adapter = pair(tmp_path, "llama", lora()())
    tokenizer(base, ["a", "b"])
    tokenizer(adapter, ["a", "b"])
    assert served(base, adapter) == "llama"
    tokenizer(adapter, ["b", "a"])
    with pytest.raises(OllamakeError, match="a tokenizer with other tokens, and the base's GGUF has the base's"):
        served(base, adapter)


def test_every_architecture_is_named_where_one_is_not_known(tmp_path: Path) -> None:
    base, adapter = pair(tmp_path, "falcon", lora(target_modules=["query_key_value"])())
    with pytest.raises(OllamakeError) as raised:
        served(base, adapter)
    assert ", ".join(ARCHITECTURES) in str(raised.value)


# The configuration ------------------------------------------------------------------------------------------------


def models(text: str) -> Any:
    return read_configuration(yaml.safe_load(text), SCHEMA).models


def test_the_base_is_added_once_for_all_of_its_adapters() -> None:
    found = models("""
defaults: {serve: adapter, quantizations: [Q8_0]}
models: {one: {base: b, adapter: a}, two: {base: ./b/, adapter: c, quantizations: [Q4_K_M]}, other: {base: d, adapter: e}}
""")
    assert {name: model.served_base for name, model in found.items()} == {
        "one": "b", "two": "b", "other": "d", "b": None, "d": None,
    }  # fmt: skip
    assert found["b"].is_derived
    assert (found["b"].quantizations, found["b"].adapters) == ((), ())
    assert (found["two"].quantizations, len(found["two"].adapters)) == (("Q4_K_M",), 1)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("/data/Qwen2.5-32B-Instruct", "qwen2.5-32b-instruct"),
        ("/data/基本 モデル (1)/", "1"),
        ("/data/基本", "base"),
        ("/data/m", "data-m"),
    ],
)
def test_the_base_has_the_name_of_its_folder(base: str, name: str) -> None:
    """Whichever of its adapters stands first; the parent's besides where a model has that name."""
    for adapters in (("m", "n"), ("n", "m")):
        text = {adapter: {"base": base, "adapter": adapter, "serve": "adapter"} for adapter in adapters}
        found = read_configuration({"models": text}, SCHEMA).models
        assert {found[adapter].served_base for adapter in adapters} == {name}


def test_the_users_own_model_of_the_base_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it is calibrated on; and `serve` as a default does not concern it."""
    monkeypatch.chdir(tmp_path)
    Path("text").touch()
    found = models("""
defaults: {serve: adapter}
models: {one: {base: b, adapter: a}, plain: {base: b, imatrix: {text: [text]}}}
""")
    assert {name: model.served_base for name, model in found.items()} == {"one": "plain", "plain": None}


def test_a_base_that_answers_are_compared_with_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q").touch()
    found = models("models: {m: {base: b, adapter: a, serve: adapter, answers: {questions: q, compare: [base]}}}")
    assert found["m"].served_base == found["m"].answers.base[0] == "b"
    assert found["b"].quantizations == ("Q4_K_M",)
    assert found["b"].registered_names == {"Q4_K_M": "m-base:q4_k_m"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "adapters: [{path: a}, {path: c, weight: 0.5}]",
            "models.m.serve: expected one adapter beside `serve: adapter`, found a, c. Ollama takes one",
        ),
        ("{adapter: a, imatrix: {text: [text]}}", "models.m.imatrix: has no effect with `serve: adapter`"),
        ("{adapter: a, quality: {chat: [text]}}", "models.m.quality: has no effect with `serve: adapter`"),
        ("{adapter: a, serve: both}", "models.m.serve: expected one of merged, adapter; found 'both'"),
    ],
)
def test_keys_that_do_not_go_with_it(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").touch()
    model = {"base": "b", "serve": "adapter"} | yaml.safe_load(text)
    with pytest.raises(OllamakeError) as raised:
        read_configuration({"models": {"m": model}}, SCHEMA)
    assert said in str(raised.value)


def test_the_name_of_the_base_is_taken() -> None:
    with pytest.raises(OllamakeError, match=r"models\.b: its base /a/b is built .* but b and a-b are other models"):
        models("models: {b: {base: /a/b, adapter: x, serve: adapter}, a-b: {base: c}}")


def test_the_disk_that_it_takes(tmp_path: Path) -> None:
    """The adapter, and what the place of registration gets of the base's GGUF: nothing of a merge."""
    plan = plan_of(*pair(tmp_path, "llama", lora()()))
    elements = sum(
        4 * sum(tensor["shape"]) for shard in plan["shards"] for tensor in shard["tensors"] if tensor["edits"]
    )
    size, folder = quantized_bytes(plan, "Q8_0"), tmp_path / "results/m"
    shared = adapter_peak(plan, folder, ["Q8_0"], Registration("shared", "store", "s"))
    assert (shared.needed, shared.stays, shared.in_store) == (2 * 4 * elements, 4 * elements, 0)
    copied = adapter_peak(plan, folder, ["Q8_0"], Registration("copy", "store", "s"))
    assert (copied.needed, copied.in_store) == (shared.needed, size)
    server = adapter_peak(plan, folder, ["Q8_0"], Registration("server", "server", "s"))
    assert (server.needed, server.stays) == (4 * elements + SERVER_COPIES * size, 4 * elements + size)
