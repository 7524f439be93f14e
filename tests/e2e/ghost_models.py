"""Small random models of different families, merged with nothing: what is measured without weights, and the real thing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from snakemake_runs import LLAMA_CPP
from transformers import AutoModelForCausalLM

from ollamake.checkpoint import read_checkpoint
from ollamake.demo_base import save_tokenizer
from ollamake.demo_text import train_tokenizer
from ollamake.gguf_conversion import convert, outtype_for
from ollamake.merge_plan import plan_merge
from ollamake.model_files import write_model_files

CONVERTER = LLAMA_CPP / "source/convert_hf_to_gguf.py"

_SHAPE = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 1, "max_position_embeddings": 8192, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    # The converter adds a tensor, rope_freqs.
    "llama": ("LlamaConfig", {"num_hidden_layers": 2, "rope_parameters": _LLAMA3_ROPE}, torch.bfloat16),
    "qwen2, tied": ("Qwen2Config", {"num_attention_heads": 8, "tie_word_embeddings": True}, torch.float16),
    # Eight experts have rules of their own in llama-quantize.
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}, torch.bfloat16),
    # The gate of its shared expert is a matrix of one row, which llama-quantize writes as a vector.
    "qwen2-moe": ("Qwen2MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
                                     "shared_expert_intermediate_size": 256}, torch.float16),
    "gemma3, sliding window": ("Gemma3TextConfig", {"head_dim": 64, "num_hidden_layers": 6, "sliding_window": 512,
                                                    "tie_word_embeddings": True}, torch.float32),
    # Rows of 224 and 336 elements fit no block of 256, and the latter none of 32.
    "qwen2, odd rows": ("Qwen2Config", {"hidden_size": 224, "intermediate_size": 336, "num_attention_heads": 7,
                                        "num_key_value_heads": 1}, torch.float16),
}  # fmt: skip
"""Name -> configuration's class, what it differs in, and dtype of the weights."""


@dataclass(frozen=True)
class SmallModel:
    """A base in ``folder``/base, and what the workflow makes of it without an adapter."""

    family: str
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @cached_property
    def plan(self) -> dict[str, Any]:
        return plan_merge(read_checkpoint(str(self.base), "base"), [], "auto")

    def save(self) -> None:
        name, values, dtype = FAMILIES[self.family]
        tokenizer = train_tokenizer(["road design", "道路設計"])
        config = getattr(transformers, name)(**_SHAPE | values | {"vocab_size": tokenizer.get_vocab_size()})
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(self.base)
        save_tokenizer(tokenizer, self.base)

    def convert(self) -> Path:
        """Write the unquantized GGUF as the workflow does, from a folder of the name that it has there."""
        merged = self.folder / "merged"
        write_model_files(self.base, [], self.plan, merged / "model_files.json")
        for shard in self.plan["shards"]:
            (merged / shard["file"]).hardlink_to(shard["base"])
        gguf = self.folder / "model.gguf"
        convert(CONVERTER, merged, outtype_for(self.plan), self.family, gguf)
        return gguf
