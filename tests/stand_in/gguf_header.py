"""The header of a GGUF file as Ollama decodes it at create and show (fs/ggml/gguf.go), with its refusals."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from go_text import Float32

MAGIC = b"GGUF"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# (name, elements a block, bytes a block) of the tensor types, in the order of ggml_type; None are no longer used.
_TENSOR_TYPES: list[tuple[str, int, int] | None] = [
    ("F32", 1, 4), ("F16", 1, 2), ("Q4_0", 32, 18), ("Q4_1", 32, 20), None, None, ("Q5_0", 32, 22), ("Q5_1", 32, 24),
    ("Q8_0", 32, 34), ("Q8_1", 32, 36), ("Q2_K", 256, 84), ("Q3_K", 256, 110), ("Q4_K", 256, 144), ("Q5_K", 256, 176),
    ("Q6_K", 256, 210), ("Q8_K", 256, 292), ("IQ2_XXS", 256, 66), ("IQ2_XS", 256, 74), ("IQ3_XXS", 256, 98),
    ("IQ1_S", 256, 50), ("IQ4_NL", 32, 18), ("IQ3_S", 256, 110), ("IQ2_S", 256, 82), ("IQ4_XS", 256, 136),
    ("I8", 1, 1), ("I16", 1, 2), ("I32", 1, 4), ("I64", 1, 8), ("F64", 1, 8), ("IQ1_M", 256, 56), ("BF16", 1, 2),
    None, None, None, ("TQ1_0", 256, 0), ("TQ2_0", 256, 0), None, None, None, ("MXFP4", 32, 17), ("NVFP4", 64, 36),
    ("Q1_0", 128, 18),
]  # fmt: skip

# Names of general.file_type from 1 on; 0 (all F32) is "unknown" to Ollama, since it reads 0 as not given.
_FILE_TYPES = [
    "F16", "Q4_0", "Q4_1", "unknown", "unknown", "unknown", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M",
    "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS",
    "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16", "unknown", "unknown", "unknown",
    "TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0",
]  # fmt: skip


class BadGguf(Exception):
    """The file is not one that Ollama decodes; the text is what it says."""


@dataclass(frozen=True)
class Tensor:
    """One entry of the tensor table."""

    name: str
    type_name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Gguf:
    """Metadata and tensor table of a file."""

    values: dict[str, Any]
    tensors: list[Tensor]

    @property
    def architecture(self) -> str:
        """general.architecture, or "unknown"."""
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def chat_template(self) -> str:
        """The jinja template, or nothing."""
        return str(self.values.get("tokenizer.chat_template", ""))

    @property
    def parameter_count(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def file_type(self) -> str:
        """Ollama's name of general.file_type."""
        number = self.values.get("general.file_type", 0)
        return _FILE_TYPES[number - 1] if 0 < number <= len(_FILE_TYPES) else "unknown"

    def of_architecture(self, key: str) -> Any:
        """Return the value of a key that has the architecture's prefix, or None."""
        return self.values.get(f"{self.architecture}.{key}")


def read_gguf(path: Path) -> Gguf:
    """Decode a file's header and check that its tensors lie inside it. Raises BadGguf, or OSError if it cannot be opened."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise BadGguf("invalid file magic")
        _, tensor_count, value_count = _unpack(file, "IQQ")
        values = {}
        for _ in range(value_count):
            key = _string(file)
            values[key] = _value(file, *_unpack(file, "I"))
        table = [_tensor(file) for _ in range(tensor_count)]
        alignment = int(values.get("general.alignment", 32))
        start = -(-file.tell() // alignment) * alignment
    size = path.stat().st_size
    for tensor, offset, length in table:
        if start + offset + length > size:
            end = start + offset + length
            raise BadGguf(f'tensor "{tensor.name}" offset+size ({end}) exceeds file size ({size})')
    return Gguf(values, [tensor for tensor, _, _ in table])


def _tensor(file: BinaryIO) -> tuple[Tensor, int, int]:
    name = _string(file)
    (dimensions,) = _unpack(file, "I")
    shape = _unpack(file, f"{dimensions}Q")
    kind, offset = _unpack(file, "IQ")
    known = _TENSOR_TYPES[kind] if kind < len(_TENSOR_TYPES) else None
    if known is None or known[2] == 0 or (shape and shape[0] % known[1]):
        raise BadGguf(f'tensor "{name}" size overflow')
    type_name, block, block_size = known
    return Tensor(name, type_name, shape), offset, math.prod(shape) // block * block_size


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item_kind, count = _unpack(file, "IQ")
        if item_kind in _SCALARS and item_kind != 6:
            return list(_unpack(file, f"{count}{_SCALARS[item_kind]}"))
        return [_value(file, item_kind) for _ in range(count)]
    if kind not in _SCALARS:
        raise BadGguf(f"invalid type: {kind}")
    (value,) = _unpack(file, _SCALARS[kind])
    return Float32(value) if kind == 6 else value


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return _exactly(file, length).decode("utf-8", "replace")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", _exactly(file, struct.calcsize(f"<{layout}")))


def _exactly(file: BinaryIO, size: int) -> bytes:
    if size > 1 << 32:
        raise BadGguf(f"GGUF string length {size} exceeds maximum {1 << 24}")
    content = file.read(size)
    if len(content) < size:
        raise BadGguf("unexpected EOF" if content else "EOF")
    return content
