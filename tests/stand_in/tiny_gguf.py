"""A model of random words, small enough to be written, copied and run in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

# As transformers has it, which is 14 edits from the ChatML that Ollama knows.
CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
OTHER = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
_WIDTH = 32

# Byte-level BPE: the bytes in the order of GPT-2's alphabet, one merge, two special tokens.
_ALPHABET = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
VOCABULARY = [*_ALPHABET, "ab", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path, chat_template: str = OTHER, architecture: str = "qwen2") -> Path:
    """Write a one-layer model in the order that converters write in, which is not llama.cpp's."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(1)
    writer.add_context_length(256)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([1] * (len(VOCABULARY) - 2) + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(VOCABULARY) - 1)
    writer.add_chat_template(chat_template)
    projections = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    writer.add_tensor("token_embd.weight", random.normal(size=(len(VOCABULARY), _WIDTH)).astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    for name in reversed(projections):
        writer.add_tensor(f"blk.0.{name}.weight", random.normal(size=(_WIDTH, _WIDTH)).astype(np.float16))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(_WIDTH, np.float32))
    for name in projections[:3]:
        writer.add_tensor(f"blk.0.{name}.bias", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
