"""Mixtures of experts through the whole chain: what the real Ollama answers is what base and adapter compute together.

The checkpoints are laid out as the published ones, each expert's matrices by themselves, and as transformers 5 has them in
memory, all experts of a layer in one tensor. So are the adapters: peft on transformers 4 trained each expert's matrices by
themselves, on transformers 5 it trains the one tensor. Every model has updates of experts, attention and routers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ollama
import pytest
import torch
import transformers
import yaml
from gguf import GGUFReader
from merging import assert_rounded_once, load_all, merge_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from registering import ONE_THREAD
from safetensors.torch import save_file
from snakemake_runs import LLAMA_CPP, run_snakemake
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ollamake.conversations import LONG_TEXT
from ollamake.create_request import request_of_marker
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import SPECIAL_TOKENS, train_tokenizer
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_conversion import convert, outtype_for
from ollamake.registration import marker_differences

CONVERTER = LLAMA_CPP / "source/convert_hf_to_gguf.py"
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0, "num_experts_per_tok": 2,
}  # fmt: skip
PROMPT = "道路設計の基準は road design, speed"
TOKENS = 8
LIKELIEST = 20
"""As many as Ollama tells of each token."""
ERROR = 0.05
"""The most that a log-probability may be off: measured 0.012 with a KV cache in float16, and with weights in float16 no more."""

PARTS = {"experts": r"\.experts\.", "attention": r"\.self_attn\.", "routers": r"\.gate\."}
"""What is trained -> what its tensors are called in adapters of both kinds."""


@dataclass
class Mixture:
    """A random model and adapter.

    ``layout``: how the checkpoint has its experts, ``one_by_one`` or ``stacked``; ``adapter``: how the adapter has them.
    ``types``: what Q4_K_M makes of some tensors.
    """

    name: str
    config: str
    values: dict[str, Any]
    layout: str
    adapter: str
    dtype: torch.dtype
    unquantized: str
    types: dict[str, str]
    folder: Path = field(default_factory=Path)

    @property
    def base(self) -> Path:
        return self.folder / f"{self.name}-base"

    @property
    def lora(self) -> Path:
        return self.folder / f"{self.name}-adapter"

    def save(self, tokenizer: Tokenizer) -> None:
        torch.manual_seed(1)
        config = getattr(transformers, self.config)(vocab_size=tokenizer.get_vocab_size(), **SHAPE | self.values)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0, 0.06)
                if "norm" in name:
                    parameter.add_(1.0)
                if name.endswith(".gate.weight") or name == "lm_head.weight":
                    # Far apart, so that no rounding sends a token to another expert, or makes another token the likeliest.
                    parameter.mul_(2 if name == "lm_head.weight" else 4)
            # Ollama answers with text: no parts of a character, and no end.
            model.lm_head.weight[[number for token, number in tokenizer.get_vocab().items() if not token.isascii()]] = 0
            model.lm_head.weight[: len(SPECIAL_TOKENS)] = 0
        model.to(self.dtype).save_pretrained(self.base, save_original_format=self.layout == "one_by_one")
        save_tokenizer(tokenizer, self.base)
        (self._save_one_by_one if self.adapter == "one_by_one" else self._save_stacked)()

    def _save_stacked(self) -> None:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
        options: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "o_proj"], "target_parameters": parameters}
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options))
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.15)
        adapted.save_pretrained(self.lora)

    def _save_one_by_one(self) -> None:
        halves = {}
        torch.manual_seed(2)
        for name, weight in sorted(load_all(self.base).items()):
            if name.endswith("_proj.weight") or name.endswith(".gate.weight"):
                module = f"base_model.model.{name.removesuffix('.weight')}"
                rows, columns = weight.shape
                halves[f"{module}.lora_A.weight"] = torch.randn(4, columns) * 0.15
                halves[f"{module}.lora_B.weight"] = torch.randn(rows, 4) * 0.15
        self.lora.mkdir()
        save_file(halves, self.lora / "adapter_model.safetensors")
        modules = sorted({name.split(".")[-3] for name in halves})
        config = LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM")
        config.base_model_name_or_path = str(self.base)
        config.save_pretrained(self.lora)

    @cached_property
    def trained(self) -> PeftModel:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, self.lora).eval()

    def logprobs(self, ids: Sequence[int], without: Sequence[str] = ()) -> torch.Tensor:
        """Return what follows each of some ids, as log-probabilities [ids, vocabulary]; without the updates of some parts."""
        kept = {}
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                if "lora_B" in name and any(re.search(PARTS[part], name) for part in without):
                    kept[parameter] = parameter.clone()
                    parameter.zero_()
            assert bool(kept) == bool(without)
            logits = self.trained(torch.tensor([list(ids)])).logits[0].double()
            for parameter, values in kept.items():
                parameter.copy_(values)
        return torch.log_softmax(logits, -1)


MIXTRAL = Mixture(
    "mixtral", "MixtralConfig", {"num_local_experts": 8, "intermediate_size": 256}, "one_by_one", "stacked",
    torch.float32, "F32",
    # Eight experts have rules of their own in llama-quantize.
    {"blk.0.attn_k.weight": "Q8_0", "blk.0.ffn_gate_exps.weight": "Q4_K"},
)  # fmt: skip
QWEN3_MOE = Mixture(
    "qwen3-moe", "Qwen3MoeConfig",
    {"num_experts": 4, "moe_intermediate_size": 96, "head_dim": 64, "norm_topk_prob": True}, "one_by_one", "one_by_one",
    torch.bfloat16, "F16",
    # Rows of 96 fit no block of 256: Q5_0 takes the place of Q4_K, Q8_0 that of Q6_K.
    {"blk.0.attn_k.weight": "Q4_K", "blk.0.ffn_gate_exps.weight": "Q4_K", "blk.0.ffn_down_exps.weight": "Q5_0",
     "blk.1.ffn_down_exps.weight": "Q8_0"},
)  # fmt: skip
MIXTURES = [MIXTRAL, QWEN3_MOE]
NAMES = [mixture.name for mixture in MIXTURES]


@dataclass
class Built:
    """What was made of all mixtures, in ``folder``, registered on the server at ``address``."""

    folder: Path
    address: str
    tokenizer: Tokenizer
    mixtures: dict[str, Mixture]

    def json(self, name: str, file: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "results" / name / file).read_text(encoding="utf-8"))
        return content

    def gguf(self, name: str, kind: str) -> Path:
        return self.folder / f"results/{name}/gguf/{name}.{kind}.gguf"

    def answer(self, name: str, kind: str) -> list[tuple[int, dict[int, float]]]:
        """Return for each token of Ollama's answer its id, and id -> log-probability of those that are likeliest there."""
        options = {"temperature": 0, "repeat_penalty": 1, "num_predict": TOKENS, **ONE_THREAD}
        asked = {"model": f"{name}:{kind.lower()}", "prompt": PROMPT, "raw": True, "stream": False, "logprobs": True}
        answer = (
            ollama.Client(self.address)
            ._request_raw("POST", "/api/generate", json={**asked, "top_logprobs": LIKELIEST, "options": options})
            .json()
        )
        ids = {id_bytes(token): number for token, number in self.tokenizer.get_vocab().items()}
        return [
            (ids[bytes(one["bytes"])], {ids[bytes(top["bytes"])]: top["logprob"] for top in one["top_logprobs"]})
            for one in answer["logprobs"]
        ]


def id_bytes(token: str) -> bytes:
    """Return what a token of the byte-level vocabulary stands for."""
    characters = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(characters[character] for character in token)


@pytest.fixture(scope="module")
def built(llama_cpp: Callable[[str], Path], server: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All mixtures, built by one run of the workflow."""
    for program in ("llama-quantize", "llama-tokenize", "llama-fit-params"):
        llama_cpp(program)
    folder = tmp_path_factory.mktemp("mixtures")
    # It knows the long conversation of the check of the prompts, which then takes few tokens.
    tokenizer = train_tokenizer(["road design", "道路設計", LONG_TEXT])
    models = {}
    for mixture in MIXTURES:
        mixture.folder = folder
        mixture.save(tokenizer)
        models[mixture.name] = {
            "base": mixture.base.name,
            "adapter": mixture.lora.name,
            "quantizations": [mixture.unquantized, "Q4_K_M"],
            "ollama": {"parameters": ONE_THREAD},
        }
    config = {
        "models": models,
        "ollama": {"target": "server", "host": server},
        "tools": {"llama_cpp": str(LLAMA_CPP)},
        "hardware": {"gpus": [], "ram_gib": 16},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run_snakemake("--cores", "2", "all", "--configfile", "mine.yaml", folder=folder)
    assert done.returncode == 0, done.stdout
    return Built(folder, server, tokenizer, {mixture.name: mixture for mixture in MIXTURES})


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_base_and_adapter(built: Built, name: str) -> None:
    """Every token is the likeliest of peft's model, and the log-probabilities are its; without any part they are others."""
    mixture = built.mixtures[name]
    prompt = built.tokenizer.encode(PROMPT).ids
    answer = built.answer(name, mixture.unquantized)
    ids = prompt + [token for token, _ in answer]
    rows = range(len(prompt) - 1, len(ids) - 1)

    def furthest(*without: str) -> float:
        expected = mixture.logprobs(ids, without)
        return max(
            abs(found - float(expected[row, token]))
            for row, (_, likeliest) in zip(rows, answer, strict=True)
            for token, found in likeliest.items()
        )

    assert len(answer) == TOKENS
    assert all(len(likeliest) == LIKELIEST for _, likeliest in answer)
    assert furthest() < ERROR
    expected = mixture.logprobs(ids)
    for row, (token, _) in zip(rows, answer, strict=True):
        assert float(expected[row].max() - expected[row, token]) < 2 * ERROR
    for part in PARTS:
        assert furthest(part) > 20 * ERROR, f"{part} without their update answer alike"
    assert furthest(*PARTS) > 20 * ERROR


@pytest.mark.parametrize("name", NAMES)
def test_four_bits_answer_like_the_adapted_model(built: Built, name: str) -> None:
    """A random model is far more sensitive than a trained one: it is nearer to the fine-tune than to the base."""
    mixture = built.mixtures[name]
    prompt = built.tokenizer.encode(PROMPT).ids
    answer = built.answer(name, "Q4_K_M")
    ids = prompt + [token for token, _ in answer]

    def mean_distance(*without: str) -> float:
        expected = mixture.logprobs(ids, without)[len(prompt) - 1 : -1]
        distances = [
            abs(found - float(row[token]))
            for row, (_, likeliest) in zip(expected, answer, strict=True)
            for token, found in likeliest.items()
        ]
        return sum(distances) / len(distances)

    assert mean_distance() < 0.5 * mean_distance(*PARTS)
    tensors = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(built.gguf(name, "Q4_K_M")).tensors}
    for tensor, kind in mixture.types.items():
        assert tensors[tensor] == kind


@pytest.mark.parametrize("name", NAMES)
def test_sizes_were_planned_to_the_byte(built: Built, name: str) -> None:
    plan = built.json(name, "plan.json")
    planned = {row["type"]: row["bytes"] for row in plan["rows"] if "bytes" in row}
    for kind in (built.mixtures[name].unquantized, "Q4_K_M"):
        assert built.gguf(name, kind).stat().st_size == planned[kind]
    unquantized = built.folder / f"results/{name}/gguf/{name}.unquantized.gguf"
    assert unquantized.stat().st_size == built.json(name, "ghost.json")["unquantized_bytes"]


@pytest.mark.parametrize("name", NAMES)
def test_routers_are_merged_and_said(built: Built, name: str) -> None:
    """Base + 2 * B @ A in float64, rounded once, and the same in the GGUF, where routers are never quantized."""
    mixture = built.mixtures[name]
    log = (built.folder / f"logs/check_inputs/{name}.log").read_text(encoding="utf-8")
    assert f"{name}: the adapter has updates of 2 routers, which are merged with it: " in log
    base, merged = load_all(mixture.base), load_all(built.folder / f"results/{name}/merged")
    adapter = load_all(mixture.lora)
    gguf = {tensor.name: tensor for tensor in GGUFReader(built.gguf(name, "Q4_K_M")).tensors}
    routers = [router for router in base if router.endswith(".gate.weight")]
    assert len(routers) == SHAPE["num_hidden_layers"]
    for router in routers:
        layer = router.split(".layers.")[1].partition(".")[0]
        halves = {half: adapter[_half(adapter, f".layers.{layer}.", half)].double() for half in "AB"}
        exact = base[router].double() + 2 * halves["B"] @ halves["A"]
        assert_rounded_once(merged[router], exact, router, 10 * exact.abs().max())
        stored = gguf[f"blk.{layer}.ffn_gate_inp.weight"]
        assert stored.tensor_type.name == "F32"
        assert torch.equal(torch.from_numpy(stored.data.copy()), merged[router].float())


def _half(adapter: dict[str, torch.Tensor], layer: str, half: str) -> str:
    """Return the name of a router's lora_A or lora_B in a layer."""
    (name,) = (name for name in adapter if layer in name and ".gate." in name and f"lora_{half}" in name)
    return name


@pytest.mark.parametrize("name", NAMES)
def test_registered(built: Built, name: str) -> None:
    for kind in (built.mixtures[name].unquantized, "Q4_K_M"):
        marker = built.json(name, f"ollama/{kind}/registered.json")
        assert marker_differences(marker, *request_of_marker(marker)) == []
        shown = ollama.Client(built.address).show(marker["name"])
        assert shown.details is not None
        assert shown.details.family == mixture_family(name)
        assert f"sha256-{sha256_of(built.gguf(name, kind))}" in (shown.modelfile or "")


def mixture_family(name: str) -> str:
    """Return llama.cpp's name of the architecture: to it Mixtral is a Llama with experts."""
    return {"mixtral": "llama", "qwen3-moe": "qwen3moe"}[name]


def converted(mixture: Mixture, folder: Path, layout: str) -> dict[str, tuple[str, bytes]]:
    """Return tensor -> (type, bytes) of the GGUF of a mixture whose checkpoint and adapter are laid out so."""
    other = replace(mixture, layout=layout, adapter="stacked", folder=folder / layout)
    other.save(train_tokenizer(["road design"]))
    plan = merge_checkpoint(other.base, [other.lora], other.folder / "merged")
    convert(CONVERTER, other.folder / "merged", outtype_for(plan), mixture.name, other.folder / "model.gguf")
    tensors = GGUFReader(other.folder / "model.gguf").tensors
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in tensors}


def test_both_layouts_of_a_checkpoint_are_one_model(tmp_path: Path, llama_cpp: Callable[[str], Path]) -> None:
    """All experts of a layer in one tensor, as transformers saves them with save_original_format=False."""
    llama_cpp("llama-quantize")
    assert converted(QWEN3_MOE, tmp_path, "stacked") == converted(QWEN3_MOE, tmp_path, "one_by_one")


def test_a_layout_that_llama_cpp_does_not_read(tmp_path: Path, llama_cpp: Callable[[str], Path]) -> None:
    """It is said what it is, and how transformers writes the other one."""
    llama_cpp("llama-quantize")
    with pytest.raises(
        OllamakeError, match=r"cannot convert .*merged: .*mlp\.experts\.gate_up_proj\. All experts"
    ) as refused:
        converted(MIXTRAL, tmp_path, "stacked")
    assert "Traceback" not in str(refused.value)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stacked/mixtral-base")
    model._weight_conversions = None
    assert "model._weight_conversions = None; model.save_pretrained(FOLDER)" in str(refused.value)
    model.save_pretrained(tmp_path / "again")
    published = replace(MIXTRAL, folder=tmp_path / "published")
    published.save(train_tokenizer(["road design"]))
    again, base = load_all(tmp_path / "again"), load_all(published.base)
    assert again.keys() == base.keys()
    assert all(torch.equal(again[name], base[name]) for name in base)
