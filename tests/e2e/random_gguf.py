"""Random models of any size that llama.cpp runs, written directly as GGUF; every character of their text is a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from stand_in.tiny_gguf import VOCABULARY

SPECIAL = ("<|im_start|>", "<|im_end|>")
_CHARACTERS = VOCABULARY[: -1 - len(SPECIAL)]


@dataclass(frozen=True)
class Shape:
    """A Qwen2 with a head of its own, so that a token's embedding matters only where the token stands."""

    vocabulary: int
    width: int
    layers: int
    feed_forward: int

    def tokens(self) -> list[str]:
        fill = (f"w{number}" for number in range(self.vocabulary - len(_CHARACTERS) - len(SPECIAL)))
        return [*_CHARACTERS, *fill, *SPECIAL]

    def write(self, path: Path, seed: int = 0) -> Path:
        """Write the model in F16."""
        random = np.random.default_rng(seed)

        def weights(*shape: int) -> np.ndarray:
            return (random.standard_normal(shape, dtype=np.float32) * np.float32(1.5 / shape[-1] ** 0.5)).astype(
                np.float16
            )

        writer = GGUFWriter(path, "qwen2")
        writer.add_name("random")
        writer.add_file_type(1)
        writer.add_context_length(2048)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.width // 64)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(self.tokens())
        writer.add_token_types([1] * (self.vocabulary - len(SPECIAL)) + [3] * len(SPECIAL))
        # A merge there must be; the token that it makes is not in the vocabulary.
        writer.add_token_merges(["ĉ ĉ"])
        writer.add_eos_token_id(self.vocabulary - 1)
        width, inner = self.width, self.feed_forward
        writer.add_tensor("token_embd.weight", weights(self.vocabulary, width))
        writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
        writer.add_tensor("output.weight", weights(self.vocabulary, width))
        for layer in range(self.layers):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", weights(width, width))
            for name in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{name}.bias", np.zeros(width, np.float32))
            for name in ("ffn_gate", "ffn_up"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", weights(inner, width))
            writer.add_tensor(f"blk.{layer}.ffn_down.weight", weights(width, inner))
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def set_weight(path: Path, tensor: str, row: int, value: float) -> None:
    """Set a number of a tensor in the file: in F16 the first of the row, in Q8_0 the scale of its first block."""
    data = next(one for one in GGUFReader(path, "r+").tensors if one.name == tensor).data
    data[row].view(np.uint8)[:2] = np.array([value], np.float16).view(np.uint8)


def overflow_at(path: Path, token: int) -> None:
    """Give one token, and no other, an activation that float16 cannot hold, though all of the weights are finite.

    llama.cpp multiplies matrices in F16 by activations that it turns into F16.
    """
    tensors = {one.name: one.data for one in GGUFReader(path, "r+").tensors}
    tensors["token_embd.weight"][:, 0] = 0
    tensors["token_embd.weight"][token, 0] = 1
    tensors["blk.0.attn_norm.weight"][0] = 1e6
