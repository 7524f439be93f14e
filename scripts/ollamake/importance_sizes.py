"""How large quantizations are that are made with an importance matrix: what llama-quantize writes of it into the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollamake.quantization_types import QUANTIZATION_TYPES

IMATRIX_FILE = "imatrix.gguf"
"""The name of a matrix that is counted in ghost.json, which is not of one model alone."""
IMATRIX_DATASET = "calibration.txt"
"""As the workflow calls the text."""
_LONGEST_TEXT = 127
"""Bytes: llama-quantize cuts the rest off (tools/quantize/quantize.cpp)."""
_ALIGNMENT = 32


def sizes_of_model(ghost: Mapping[str, Any], model: str, imatrix: bool) -> dict[str, Any]:
    """Return ``types`` and ``with_imatrix`` of ghost.json for a model of the configuration.

    ``imatrix``: the model has an importance matrix. Then ``types`` are the sizes with it of all types that use one, and
    ``with_imatrix`` has nothing to add. It is called {model}.imatrix.gguf, whether it is there or would have to be.
    """
    file = f"{model}.imatrix.gguf"
    with_one = {kind: _with(file, ghost, size) for kind, size in ghost["with_imatrix"].items()}
    types = {}
    for kind, size in ghost["types"].items():
        if "refused" in size or not (size["imatrix"] or (imatrix and QUANTIZATION_TYPES[kind].uses_imatrix)):
            types[kind] = size
        else:
            types[kind] = with_one.get(kind) or _with(file, ghost, size)
    return {"types": types, "with_imatrix": {} if imatrix else with_one}


def imatrix_metadata_bytes(file: str) -> int:
    """Return what llama-quantize adds to the key-value section for an importance matrix called ``file``.

    A key has its length (8 bytes), itself, its type (4); text has its length and itself, a number 4 bytes.
    """
    texts = {"file": file, "dataset": IMATRIX_DATASET}
    numbers = ("entries_count", "chunks_count")
    key = len("quantize.imatrix.") + 12
    return sum(
        key + len(name) + 8 + min(len(text.encode("utf-8")), _LONGEST_TEXT) for name, text in texts.items()
    ) + sum(key + len(name) + 4 for name in numbers)


def _with(file: str, ghost: Mapping[str, Any], size: Mapping[str, Any]) -> dict[str, Any]:
    tensors = sum(size["block_bytes"]) + size["embedding_bytes"] + size["other_bytes"]
    start = ghost["table_end"] + imatrix_metadata_bytes(file)
    total = -(-start // _ALIGNMENT) * _ALIGNMENT + tensors
    return {**size, "imatrix": True, "bytes": total, "bits_per_weight": round(total * 8 / ghost["parameters"], 3)}
