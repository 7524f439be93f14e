"""What the GGUF of an adapter holds, and whether it fits a model's: llama.cpp adds alpha / rank * b @ a to a weight.

Source: src/llama-adapter.h (get_scale) and build_lora_mm in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of

Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class AdapterGguf:
    """What an adapter's GGUF holds."""

    architecture: str
    alpha: float
    pairs: dict[str, tuple[Matrix, Matrix]]
    """Tensor of the base's GGUF -> (a [rank, in], b [out, rank])."""

    def delta(self, name: str) -> Matrix:
        """Return what llama.cpp adds to a weight, in float64: [out, in]."""
        a, b = (half.astype(np.float64) for half in self.pairs[name])
        return np.asarray(self.alpha / a.shape[0] * (b @ a))

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole update."""
        return update_norm((a, b, self.alpha / a.shape[0]) for a, b in self.pairs.values())


def read_adapter_gguf(path: Path) -> AdapterGguf:
    """Read an adapter's GGUF. Raises OllamakeError if it is none, or lacks one of two halves."""
    try:
        reader = GGUFReader(path)
        kind, architecture, alpha = (
            reader.fields[key].contents() for key in ("general.type", "general.architecture", "adapter.lora.alpha")
        )
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise OllamakeError(f"{path} is not a whole GGUF of an adapter ({error!r}); the disk may be full.") from error
    halves = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    names = {name.rpartition(".lora_")[0] for name in halves}
    pairs = {f"{name}.lora_a": f"{name}.lora_b" for name in names}
    if kind != "adapter" or {*pairs, *pairs.values()} != halves.keys():
        raise OllamakeError(f"{path} is not the GGUF of a LoRA: general.type {kind!r}, tensors {sorted(halves)[:4]}.")
    return AdapterGguf(
        str(architecture),
        float(alpha),
        {name: (halves[f"{name}.lora_a"], halves[f"{name}.lora_b"]) for name in sorted(names)},
    )


def update_norm(updates: Iterable[tuple[Matrix, Matrix, float]]) -> float:
    """Return the norm of all scale * b @ a, from |b a|^2 = tr(b^T b a a^T), which needs no matrix of the weight's size."""
    total = 0.0
    for a, b, scale in updates:
        a, b = a.astype(np.float64), b.astype(np.float64)
        total += scale**2 * float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(total)


def require_fitting(adapter: Path, gguf: Path) -> None:
    """Raise OllamakeError if an adapter's GGUF has tensors that a model's has not, or of another shape; llama.cpp would, later.

    Of the model only the header is read.
    """
    converted, model = read_adapter_gguf(adapter), GGUFReader(gguf)
    architecture = str(model.fields["general.architecture"].contents())
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in model.tensors}
    found = []
    if architecture != converted.architecture:
        found.append(f"it is for {converted.architecture}, the model is {architecture}")
    for name, (a, b) in converted.pairs.items():
        if shapes.get(name) != [a.shape[1], b.shape[0]]:
            found.append(f"{name} is {[a.shape[1], b.shape[0]]}, the model has {shapes.get(name, 'none')}")
    if found:
        raise OllamakeError(
            f"{adapter} does not fit {gguf}:\n    "
            + "\n    ".join(found[:6])
            + "\n  They are of two bases; set `base` to that"
            " which the adapter was trained on."
        )


def adapter_record(path: Path, name: str, converted: AdapterGguf) -> dict[str, Any]:
    """Return what stands beside an adapter's GGUF; ``name`` is the name that it will have."""
    ranks = sorted({a.shape[0] for a, _ in converted.pairs.values()})
    return {
        "file": name,
        "type": "adapter",
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "architecture": converted.architecture,
        "alpha": converted.alpha,
        "ranks": ranks,
        "weights": len(converted.pairs),
        "parameters": sum(a.size + b.size for a, b in converted.pairs.values()),
        "update_norm": converted.norm,
    }
