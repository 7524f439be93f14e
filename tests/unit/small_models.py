"""Small random models and adapters, made by transformers and peft."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_model(family: str, dtype: torch.dtype, tied: bool) -> PreTrainedModel:
    """Return a random model with weights of the size that trained ones have."""
    torch.manual_seed(1)
    shape = SHAPE | {"tie_word_embeddings": tied}
    model = LlamaForCausalLM(LlamaConfig(**shape)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model.to(dtype)


def load_base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a random model in a dtype."""
    family = LlamaForCausalLM if "llama" in folder.name else Qwen2ForCausalLM
    return family.from_pretrained(folder, dtype=dtype)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return the weights of peft's own merge, all of it in float64."""
    model = load_base(base, torch.float64)
    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    adapted = adapted.to(torch.float64)
    return dict(adapted.merge_and_unload().state_dict())
