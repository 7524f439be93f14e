"""Bytes in 8 and 4 bits, against bitsandbytes' own tensors and transformers' own choice of modules."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from bitsandbytes.functional import quantize_4bit
from small_models import FAMILIES
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from ollamake.bitsandbytes_sizes import int8_bytes, is_linear, nf4_bytes, transformers_bytes


@pytest.mark.parametrize("shape", [(64, 64), (128, 256), (100, 36), (512, 1024)])
def test_nf4_is_as_large_as_bitsandbytes_tensors(shape: tuple[int, int]) -> None:
    packed, state = quantize_4bit(torch.randn(shape), compress_statistics=True, quant_type="nf4")
    tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert nf4_bytes(shape[0] * shape[1]) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_int8_is_as_large_as_bitsandbytes_tensors() -> None:
    codes, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(torch.randn(48, 80, dtype=torch.float16))
    assert int8_bytes((48, 80)) == codes.numel() * codes.element_size() + scales.numel() * scales.element_size()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3-moe", "mixtral", "deepseek-v3", "gemma3", "phi3", "gpt2"])
def test_the_linear_layers_are_those_that_transformers_replaces(family: str) -> None:
    name, values = FAMILIES[family]
    config = getattr(transformers, name)(**copy.deepcopy(values), tie_word_embeddings=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), BitsAndBytesConfig(load_in_4bit=True))
    replaced = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert replaced
    assert {name for name, shape in shapes.items() if is_linear(name, shape)} == replaced


def test_experts_that_a_checkpoint_stores_one_by_one_stay_in_16_bits() -> None:
    assert not is_linear("model.layers.0.mlp.experts.3.up_proj.weight", (24, 64))
    assert is_linear("model.layers.0.mlp.shared_expert.up_proj.weight", (24, 64))


def test_the_sum_of_a_model() -> None:
    tensors = [
        ("model.embed_tokens.weight", "BF16", (160, 64)),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", (64, 64)),
        ("model.layers.0.input_layernorm.weight", "F32", (64,)),
        ("lm_head.weight", "BF16", (160, 64)),
    ]
    plain = 2 * (2 * 160 * 64 + 64)
    assert transformers_bytes(tensors) == {
        "FP16": plain + 2 * 4096,
        "INT8": plain + 4096 + 4 * 64,
        "NF4": plain + 2048 + 64 + 4 + 4 * (16 + 256 + 1),
    }
