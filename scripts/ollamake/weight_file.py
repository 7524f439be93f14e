"""Weights as they lie on disk: .safetensors, and the .bin of torch.save, behind one way of listing and reading.

A .bin is a zip archive with a pickle in it (torch/serialization.py). It is only ever opened with weights_only=True, which
builds tensors and nothing else, and mapped, so that reading one tensor does not read the others.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollamake.errors import OllamakeError
from ollamake.safetensors_header import SafetensorsHeader, TensorEntry, read_header, tensor_bytes

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""torch's names of dtypes -> those of safetensors."""

_HELD = 64 << 20
"""Bytes of a mapping that may stay behind the reader."""


def is_pickled(path: Path) -> bool:
    """Whether a weight file is a .bin of torch.save."""
    return path.suffix == ".bin"


def read_entries(path: Path) -> SafetensorsHeader:
    """Return the tensors of a weight file in the order in which they are read.

    Of a .bin the offsets count the tensors' own bytes, one tensor after another. Raises OllamakeError naming the file for
    whatever is wrong with it.
    """
    if not is_pickled(path):
        return read_header(path)
    entries, offset = [], 0
    for name, tensor in _load(path).items():
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise OllamakeError(f"{path}: tensor {name!r} has the dtype {tensor.dtype}, which cannot be stored on.")
        shape = tuple(tensor.shape)
        end = offset + tensor_bytes(dtype, shape)
        entries.append(TensorEntry(name, dtype, shape, offset, end))
        offset = end
    return SafetensorsHeader(path, tuple(entries), 0)


class WeightFile:
    """Reads bytes of single tensors; holds a mapping of the file, not its content."""

    def __init__(self, header: SafetensorsHeader) -> None:
        self.path = header.path
        self.entries = {entry.name: entry for entry in header.tensors}
        self._start = header.data_start
        self._tensors: Mapping[str, torch.Tensor] | None = None
        self._released = 0
        if is_pickled(header.path):
            self._tensors = _load(header.path)
        else:
            with header.path.open("rb") as file:
                # Private and writable only because torch takes no read-only memory; nothing ever writes to it.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def head(self) -> memoryview:
        """Return the bytes before the first tensor."""
        return memoryview(self._map)[: self._start]

    def read(self, name: str, first: int, last: int) -> memoryview:
        """Return bytes [first, last) of a tensor, little-endian and row by row, as they lie in the mapping."""
        if self._tensors is not None:
            import torch

            flat = self._tensors[name].contiguous().view(-1)
            return memoryview(flat.view(torch.uint8).numpy()).cast("B")[first:last]
        begin = self._start + self.entries[name].begin
        return memoryview(self._map)[begin + first : begin + last]

    def release(self, name: str, offset: int) -> None:
        """Let the pages well before a byte of a tensor go: mapped pages count as memory of the process.

        Well before, since those who were given views of them may still be reading.
        """
        if self._tensors is not None:
            return
        position = max(0, self._start + self.entries[name].begin + offset - _HELD) // mmap.PAGESIZE * mmap.PAGESIZE
        if position - self._released >= _HELD:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, position - self._released)
            self._released = position


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Return name -> mapped tensor of a .bin."""
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OllamakeError(
            f"{path} is not a file of tensors that torch.load reads with weights_only=True ({first}). It is damaged,"
            " in the format of torch before 1.6, or holds code, which is not run. Save the model again with"
            " save_pretrained(), which writes .safetensors."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise OllamakeError(f"{path} holds something else than tensors by name; expected a model's state_dict.")
    return {str(name): tensor for name, tensor in content.items()}
