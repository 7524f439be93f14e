"""Whether a GGUF that somebody else made is of a certain base: every norm of it has the base's values, to the bit.

llama.cpp keeps tensors of one dimension in float32, whatever the others are quantized to. Another training of the same
architecture, the instruct model beside its base for example, has other norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map

from ollamake.errors import OllamakeError
from ollamake.gguf_header import GgufHeader, StoredTensor, read_gguf_header
from ollamake.merge_arithmetic import TORCH_DTYPES
from ollamake.weight_file import WeightFile, read_entries

_ONE_ADDED = frozenset({"gemma", "gemma2", "gemma3"})
"""Architectures to whose norms the converter adds 1 (conversion/gemma.py): transformers multiplies with 1 + weight."""

_ARCHITECTURE = "general.architecture"


def require_same_base(plan: Mapping[str, Any], gguf: Path, name: str, key: str) -> int:
    """Return how many norms of ``gguf`` are those of a plan's base; raise OllamakeError if one has other values.

    ``plan`` is a parsed merge_plan.json, of whose base only the norms are read; ``name`` is what the GGUF's model is called,
    ``key`` the configuration key that messages name.
    """
    try:
        architecture = str(read_gguf_header(gguf, (_ARCHITECTURE,)).values[_ARCHITECTURE])
        header = read_gguf_header(gguf, (f"{architecture}.block_count",))
        blocks = int(header.values[f"{architecture}.block_count"])
        if not 0 < blocks <= len(header.tensors):  # names are listed for each of them
            raise ValueError(f"{blocks} blocks of {len(header.tensors)} tensors")
        number = next(number for number, known in MODEL_ARCH_NAMES.items() if known == architecture)
    except (ValueError, TypeError, KeyError, OSError, StopIteration) as error:
        raise OllamakeError(
            f"{key}: {gguf}, the weights of {name}, is no GGUF of a known model ({error!r})."
        ) from error
    names = get_tensor_name_map(number, blocks)
    pairs, differing = 0, []
    for tensor, values in _norms(plan):
        stored = names.get_name(tensor, try_suffixes=(".weight",))
        if stored is None:
            continue
        expected = values + 1 if architecture in _ONE_ADDED else values
        found = _values(header, gguf, stored)
        pairs += 1
        if found is None or not np.array_equal(found, expected):
            differing.append(f"{stored} {_difference(found, expected)}")
    if not pairs:
        raise OllamakeError(
            f"{key}: {name} ({architecture}) cannot be compared with the base: none of its norms has a name that llama.cpp"
            f" knows. Leave {key} out."
        )
    if differing:
        raise OllamakeError(
            f"{key}: expected the weights of the base, found those of another model in {name}: of {pairs} norms {len(differing)}"
            f" have other values ({'; '.join(differing[:3])}). The adapter was trained on the base; name the model in Ollama that"
            f" was made from it (the instruct model, not the base model?), or leave {key} out."
        )
    return pairs


def _norms(plan: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield name and values, in float32, of the base's norms; those of attention heads are left out, which are permuted."""
    for shard in plan["shards"]:
        file = WeightFile(read_entries(Path(shard["base"])))
        for tensor in shard["tensors"]:
            source = tensor["source"]
            entry = file.entries.get(source)
            if entry is None or len(entry.shape) != 1 or "norm" not in source or not source.endswith(".weight"):
                continue
            if any(part in source for part in ("q_norm", "k_norm")):
                continue
            data = bytearray(file.read(source, 0, entry.end - entry.begin))
            yield tensor["name"], torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).to(torch.float32).numpy()


def _values(header: GgufHeader, gguf: Path, name: str) -> np.ndarray[Any, Any] | None:
    """Return a tensor's values where they are float32, else None."""
    stored: StoredTensor | None = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if stored is None or stored.kind != GGMLQuantizationType.F32:
        return None
    return np.fromfile(gguf, dtype="<f4", count=stored.elements, offset=stored.begin)


def _difference(found: np.ndarray[Any, Any] | None, expected: np.ndarray[Any, Any]) -> str:
    if found is None:
        return "is not there in float32"
    if found.shape != expected.shape:
        return f"has {found.size} values, the base {expected.size}"
    return f"differs by up to {np.abs(found - expected).max():.3g}"
