"""ghost.json of Qwen2.5-32B-Instruct, by hand: sizes from its shape, memory from llama.cpp's own figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LAYERS, WIDTH, FEED_FORWARD, KV_WIDTH, VOCABULARY = 64, 5120, 27648, 1024, 152064
MATRICES = 2 * WIDTH * WIDTH + 2 * KV_WIDTH * WIDTH + 3 * FEED_FORWARD * WIDTH
"""Elements of one block's matrices; its norms and biases are F32 in every type."""
VECTORS = 4 * (2 * WIDTH + WIDTH + 2 * KV_WIDTH)

ON_GPU_MIB = {"Q5_K_M": 21668, "Q4_K_M": 18508, "Q4_K_S": 17491, "IQ4_XS": 16642, "Q3_K_M": 14872}
"""Weights on the GPU of the types that mix others."""

CONTEXTS = (2048, 4096, 8192, 16384, 32768)
KV_KIB = {"f16": 256, "q8_0": 136, "q4_0": 72}
"""KiB of KV cache a token: 64 layers, 2 x 1024 elements of 16, 8.5 and 4.5 bits."""


def of_server(context: int) -> int:
    """llama-server's compute buffer: 206 MiB with 4k, 234 with 32k, 330 with 128k."""
    return 202 + context // 1024


def of_fit_params(context: int) -> int:
    """llama-fit-params' compute buffer, which is that of the logits of 512 tokens up to 32k."""
    return 317


def qwen_32b(compute: Callable[[int], int] = of_server, **changed: Any) -> dict[str, Any]:
    """Return the ghost, with ``changed`` keys."""
    types: dict[str, Any] = {
        kind: _size(bits, (MATRICES * bits) // 8 + VECTORS)
        for kind, bits in {"F32": 32.0, "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625}.items()
    }
    for kind, mib in ON_GPU_MIB.items():
        output = VOCABULARY * WIDTH * 6.5625 / 8 + 4 * WIDTH
        types[kind] = _size(6.5625, ((mib << 20) - output) // LAYERS)
    types["IQ2_M"] = _size(2.8, 110e6) | {"imatrix": True}
    types["TQ1_0"] = {"refused": "cannot be made of it"}
    return {
        "name": "Qwen/Qwen2.5-32B-Instruct",
        "source": "https://huggingface.co/Qwen/Qwen2.5-32B-Instruct",
        "exact": True,
        "architecture": "qwen2",
        "parameters": 32763876352,
        "trained_context": 32768,
        "block_count": LAYERS,
        "outtype": "F16",
        "unquantized_bytes": types["F16"]["bytes"],
        "metadata_bytes": 5980000,
        "table_end": 5979990,
        "largest_tensor": VOCABULARY * WIDTH,
        "types": types,
        "with_imatrix": {},
        "memory": {"source": "llama-fit-params", "rows": rows(compute), "impossible": {}},
        "transformers": {"FP16": 65527752704, "INT8": 34200000000, "NF4": 19000000000},
    } | changed


def rows(compute: Callable[[int], int] = of_server, parallel: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, Any]]:
    """Return the rows of its memory, which llama.cpp prints in whole MiB."""
    return [
        {
            "kv": kv,
            "parallel": slots,
            "context": context,
            "kv_mib": kib * context * slots // 1024,
            "compute_mib": compute(context),
        }
        for kv, kib in KV_KIB.items()
        for slots in parallel
        for context in CONTEXTS
    ]


def spec(gpus: list[dict[str, Any]] | None, ram_gib: float | None = 64, **asked: Any) -> dict[str, Any]:
    """Return what is asked of a plan; ``host``: address of the server; ``left_out``, ``imatrix``: see memory_plan."""
    rest = {key: asked.pop(key) for key in ("host", "left_out", "imatrix", "serves_adapter") if key in asked}
    return {
        "asked": {"context": 8192, "parallel": 1, "kv_cache": "f16", "margin_gib": 1.0} | asked,
        "hardware": {"gpus": gpus, "ram_gib": ram_gib},
        "host": None,
        "left_out": {},
    } | rest


def gpu(memory_gib: float, name: str = "GPU") -> dict[str, Any]:
    return {"name": name, "memory_gib": memory_gib}


def _size(embedding_bits: float, block: float) -> dict[str, Any]:
    embedding = int(VOCABULARY * WIDTH * embedding_bits / 8)
    blocks = [int(block) // 32 * 32] * LAYERS
    size = sum(blocks) + 2 * embedding + 4 * WIDTH + 5980000
    return {
        "imatrix": False,
        "bytes": size,
        "bits_per_weight": size * 8 / 32763876352,
        "embedding_bytes": embedding,
        "tied": False,
        "block_bytes": blocks,
        "other_bytes": embedding + 4 * WIDTH,
    }
