"""Bytes of a model's weights in GPU memory for transformers: in 16 bits, and as bitsandbytes quantizes them on loading.

Which tensors bitsandbytes takes follows from transformers' ``replace_with_bnb_linear`` (integrations/bitsandbytes.py of
5.24): every ``nn.Linear`` but the head. Embeddings, norms and biases stay in 16 bits. So do, in transformers 5, the experts
of a mixture, which it stacks into one 3-D parameter a layer, and their router, which is a class of its own; such a model
gets hardly smaller. vLLM quantizes experts, too, in a way of its own that is not counted here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ollamake.safetensors_header import BITS
from ollamake.tensor_names import EMBEDDING, HEAD, ROUTER

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights that share an absolute maximum, and maxima that share one of their own."""
_TABLES = 4 * (16 + 256 + 1)
"""Values of NF4, of the nested 8-bit type, and the maxima's mean, F32 (bitsandbytes.functional.quantize_4bit)."""
EXPERT = re.compile(r"\.experts(\.|$)")
"""In the name of a tensor of experts."""
_POSITION = re.compile(r"(^|\.)(wpe|position_embeddings?|embed_positions|position_embedding)\.weight$")


def transformers_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, int]:
    """Return FP16, INT8 (LLM.int8()) and NF4 (double quantization, blocks of 64) -> bytes of all weights.

    ``tensors``: (name, safetensors dtype, shape) of the checkpoint.
    """
    total = {"FP16": 0, "INT8": 0, "NF4": 0}
    for name, dtype, shape in tensors:
        count = math.prod(shape)
        plain = 2 * count if dtype in _FLOATS else count * BITS[dtype] // 8
        linear = is_linear(name, shape)
        total["FP16"] += plain
        total["INT8"] += int8_bytes(shape) if linear else plain
        total["NF4"] += nf4_bytes(count) if linear else plain
    return total


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether transformers gives this tensor of a checkpoint to bitsandbytes, told from its name."""
    if len(shape) != 2 or not name.endswith(".weight"):
        return False
    others = (EMBEDDING, HEAD, EXPERT, ROUTER, _POSITION)
    return not any(pattern.search(name) for pattern in others)


def int8_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a matrix in LLM.int8(): a byte an element, and the scale of each row in F32."""
    return math.prod(shape) + 4 * shape[0]


def nf4_bytes(count: int) -> int:
    """Return the bytes of ``count`` weights in NF4: half a byte each, and their maxima in 8 bits with nested scales."""
    blocks = -(-count // _BLOCK)
    return -(-count // 2) + blocks + 4 * -(-blocks // _NESTED_BLOCK) + _TABLES
