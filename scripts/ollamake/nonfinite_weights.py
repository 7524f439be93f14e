"""Which tensors of a GGUF hold NaN or infinity, found without holding more than a few MB of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf.quants import dequantize

from ollamake.progress import progress_bar

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

    The tensors are read in the order of the file until ``most`` are found. The second list has types that the gguf package
    does not dequantize.
    """
    reader = GGUFReader(path)
    found: list[NonFiniteTensor] = []
    unknown: list[str] = []
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    with progress_bar(total, f"looking for NaN in {path.name}") as progress, path.open("rb") as file:
        for tensor in reader.tensors:
            block, size = GGML_QUANT_SIZES[tensor.tensor_type]
            file.seek(int(tensor.data_offset))
            left, nan, infinite = int(tensor.n_bytes), 0, 0
            while left:
                data = np.fromfile(file, np.uint8, min(left, max(1, _ELEMENTS // block) * size))
                if not data.size:
                    break
                left -= data.size
                progress.update(data.size)
                try:
                    # What is not finite is what is looked for: no warnings of it.
                    with np.errstate(all="ignore"):
                        values = dequantize(data, tensor.tensor_type)
                except NotImplementedError:
                    unknown.append(tensor.name)
                    break
                nan += int(np.isnan(values).sum())
                infinite += int(np.isinf(values).sum())
            if nan or infinite:
                found.append(NonFiniteTensor(tensor.name, int(tensor.n_elements), nan, infinite))
            if len(found) == most:
                break
    return found, unknown
