"""Small random models and adapters, made by transformers and peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_SMALL = {name: size for name, size in SHAPE.items() if name not in ("num_key_value_heads", "intermediate_size")}
_MLA = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SHAPE),
    "mistral": ("MistralConfig", SHAPE),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen3": ("Qwen3Config", SHAPE | {"head_dim": 16}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        SHAPE | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
    ),
    "mixtral": ("MixtralConfig", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", SHAPE | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v3": ("DeepseekV3Config", SHAPE | _MLA),
    "gemma2": ("Gemma2Config", SHAPE | {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", SHAPE | {"head_dim": 16}),
    "phi3": ("Phi3Config", SHAPE | {"pad_token_id": 0}),
    "olmo2": ("Olmo2Config", SHAPE),
    "cohere": ("CohereConfig", SHAPE),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 160, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXConfig", _SMALL | {"intermediate_size": 96}),
    "falcon": ("FalconConfig", _SMALL),
    "qwen3-next": (
        "Qwen3NextConfig",
        SHAPE | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                 "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                 "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                 "layer_types": ["linear_attention", "full_attention"]},
    ),
    "exaone": ("ExaoneConfig", SHAPE | {"head_dim": 16}),
    "gptj": ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 160, "n_positions": 64, "rotary_dim": 8}),
    "biogpt": ("BioGptConfig", _SMALL | {"intermediate_size": 96, "max_position_embeddings": 64}),
    "rwkv": ("RwkvConfig", {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 160}),
    "bigbird-pegasus": (
        "BigBirdPegasusConfig",
        {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "vocab_size": 160,
         "max_position_embeddings": 64, "is_decoder": True},
    ),
}  # fmt: skip
"""Architecture -> its configuration's class and values; Conv1D, fused projections, experts, biases, norms of all kinds, modules
that transformers renames (exaone), a bias of the head (gptj), a head of another name (biogpt, rwkv), linear layers with the
name of a head (rwkv), a switch for ties that ties nothing (bigbird-pegasus)."""
EMBEDDINGS = {
    "gpt2": "wte",
    "gpt-neox": "embed_in",
    "falcon": "word_embeddings",
    "gptj": "wte",
    "rwkv": "embeddings",
}
HEADS = {"biogpt": "output_projection", "rwkv": "head"}
EXPERTS = ("qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3", "qwen3-next")


def random_model(family: str, dtype: torch.dtype, tied: bool) -> PreTrainedModel:
    """Return a random model with weights of the size that trained ones have."""
    torch.manual_seed(1)
    name, values = FAMILIES[family]
    config: PretrainedConfig = getattr(transformers, name)(**values, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(0, 0.02)
            if "norm" in parameter_name or "ln_" in parameter_name:
                parameter.add_(1.0)
    return model.to(dtype)


def load_base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model in a dtype."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def save_adapter(
    base: Path,
    folder: Path,
    config: PeftConfig,
    *,
    size: float = 0.02,
    seed: int = 2,
    rows: int | None = None,
    safetensors: bool = True,
) -> PeftModel:
    """Save an adapter for a base with every trained parameter moved by random numbers; return the model in memory.

    ``rows``: the embeddings are resized to so many before. The numbers of lora_A are larger, as in training.
    """
    model = load_base(base, torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    adapted = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "lora_A" in name else size))
    adapted.save_pretrained(folder, safe_serialization=safetensors)
    return adapted.eval()


def lora(**options: Any) -> Callable[[], LoraConfig]:
    """Return a maker of LoRA configurations: peft changes the one it is given."""
    return lambda: LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options))


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return the weights of peft's own merge, all of it in float64, under the names that transformers stores."""
    model = load_base(base, torch.float64)
    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    adapted = adapted.to(torch.float64)
    return dict(adapted.merge_and_unload().state_dict())


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the logits of a model for two fixed sequences, in its dtype."""
    tokens = torch.arange(48).view(2, 24) * 7 % 160
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(tokens).logits
    return logits
