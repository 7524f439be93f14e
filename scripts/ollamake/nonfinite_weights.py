"""Which tensors of a GGUF hold NaN or infinity, found without holding more than a few MB of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from ollamake.gguf_header import BLOCK_SIZES, Q1_0, Q2_0, StoredTensor, read_gguf_header
from ollamake.progress import progress_bar

Bytes = npt.NDArray[np.uint8]

_ELEMENTS = 4 << 20
"""Elements of a tensor that are looked at together: 16 MB in float32, a few times that while they are dequantized."""


@dataclass(frozen=True)
class NonFiniteTensor:
    """A tensor of ``elements``, ``nan`` of which are no numbers and ``infinite`` infinite."""

    name: str
    elements: int
    nan: int
    infinite: int

    def __str__(self) -> str:
        return f"{self.name} ({self.nan} NaN and {self.infinite} infinite of {self.elements})"


def nonfinite_tensors(path: Path, most: int = 3) -> tuple[list[NonFiniteTensor], list[str]]:
    """Return (the first tensors with NaN or infinity, names of tensors that could not be looked at).

    The tensors are read in the order of the file until ``most`` are found. The second list has types that can not be
    dequantized here. Raises ValueError if the file is no GGUF.
    """
    found: list[NonFiniteTensor] = []
    unknown: list[str] = []
    tensors = read_gguf_header(path, ()).tensors
    total = sum(tensor.size for tensor in tensors if tensor.kind in BLOCK_SIZES)
    with progress_bar(total, f"looking for NaN in {path.name}") as progress, path.open("rb") as file:
        for tensor in tensors:
            try:
                nan = infinite = 0
                for data in _parts(file, tensor):
                    progress.update(data.size)
                    values = _values(data, tensor.kind)
                    nan += int(np.isnan(values).sum())
                    infinite += int(np.isinf(values).sum())
            except NotImplementedError:
                unknown.append(tensor.name)
                continue
            if nan or infinite:
                found.append(NonFiniteTensor(tensor.name, tensor.elements, nan, infinite))
            if len(found) == most:
                break
    return found, unknown


def _parts(file: BinaryIO, tensor: StoredTensor) -> Iterator[Bytes]:
    """Yield the bytes of a tensor, whole blocks, a few MB at a time. Raises NotImplementedError for a type without a size."""
    if tensor.kind not in BLOCK_SIZES:
        raise NotImplementedError(f"type {tensor.kind}")
    block, size = BLOCK_SIZES[tensor.kind]
    file.seek(tensor.begin)
    left = tensor.size
    while left:
        data = np.fromfile(file, np.uint8, min(left, max(1, _ELEMENTS // block) * size))
        if not data.size:
            break
        left -= data.size
        yield data


def _values(data: Bytes, kind: int) -> npt.NDArray[np.float32]:
    """Return the elements of whole blocks. Raises NotImplementedError for a type that is not known.

    Q1_0 and Q2_0: ``dequantize_row_q1_0`` and ``_q2_0`` of ggml-quants.c, which the gguf package does not have.
    """
    # What is not finite is what is looked for: no warnings of it.
    with np.errstate(all="ignore"):
        if kind not in (Q1_0, Q2_0):
            return dequantize(data, GGMLQuantizationType(kind))
        blocks = data.reshape(-1, BLOCK_SIZES[kind][1])
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
        if kind == Q1_0:
            return np.where(bits, scales, -scales)
        return (bits[:, ::2] + 2 * bits[:, 1::2] - np.float32(1)) * scales
