"""What stands before the weights of a GGUF (ggml's docs/gguf.md): metadata, and a table of the tensors.

The gguf package takes seconds for a vocabulary of 150 k tokens, and refuses a file with one tensor of a type that is newer than
the package; the pinned llama.cpp makes such files. So the header is read here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGUFValueType

Q1_0, Q2_0 = 41, 42
"""Numbers of types (ggml.h) that the gguf package knows by name only, or not at all."""
BLOCK_SIZES: dict[int, tuple[int, int]] = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} | {
    Q1_0: (128, 18),
    Q2_0: (64, 18),
}
"""Number of a type -> elements and bytes of a block. The last two: ``block_q1_0`` and ``block_q2_0`` of ggml-common.h."""

_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of ``elements`` at byte ``begin`` of the file; ``kind``: ggml's number of its type, whether known or not."""

    name: str
    kind: int
    elements: int
    begin: int

    @property
    def size(self) -> int:
        """Bytes. Raises ValueError for a type of which the size of a block is not known."""
        if self.kind not in BLOCK_SIZES:
            raise ValueError(f"{self.name} has a type with the number {self.kind}, which is not known here")
        elements, size = BLOCK_SIZES[self.kind]
        return self.elements // elements * size


@dataclass(frozen=True)
class GgufHeader:
    """``values``: of the metadata that were asked for, as far as they are there; ``tensors``: all, in the table's order."""

    values: dict[str, Any]
    tensors: list[StoredTensor]


def read_gguf_header(path: Path, keys: Collection[str]) -> GgufHeader:
    """Read the metadata ``keys`` and the tensors' table of a GGUF.

    Raises ValueError if it is no GGUF or ends within its header, OSError if it cannot be opened.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(content).header(keys)
        except struct.error as error:
            raise ValueError(f"it ends within its header: {error}") from error


class _Reader:
    """Reads the header from its beginning to its end. Raises ValueError or struct.error where it is none."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._offset = 4
        version = self._number("I")
        if content[:4] != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {content[:4]!r} and version {version}")

    def header(self, keys: Collection[str]) -> GgufHeader:
        tensors, pairs = self._number("Q"), self._number("Q")
        values = {}
        for _ in range(pairs):
            key, value = self._string(), self._value(GGUFValueType(self._number("I")))
            if key in keys or key == _ALIGNMENT:
                values[key] = value
        table = [self._tensor() for _ in range(tensors)]
        alignment = values.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        if alignment < 1:
            raise ValueError(f"{_ALIGNMENT} is {alignment}")
        begin = math.ceil(self._offset / alignment) * alignment
        return GgufHeader(
            {key: value for key, value in values.items() if key in keys},
            [StoredTensor(name, kind, elements, begin + offset) for name, kind, elements, offset in table],
        )

    def _tensor(self) -> tuple[str, int, int, int]:
        name = self._string()
        elements = math.prod(self._number("Q") for _ in range(self._number("I")))
        return name, self._number("I"), elements, self._number("Q")

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._number(_FORMATS[kind])
        kind, count = GGUFValueType(self._number("I")), self._number("Q")
        if kind in _FORMATS:
            values = struct.unpack_from(f"<{count}{_FORMATS[kind]}", self._content, self._offset)
            self._offset += struct.calcsize(f"<{count}{_FORMATS[kind]}")
            return list(values)
        return [self._value(kind) for _ in range(count)]

    def _string(self) -> str:
        length = self._number("Q")
        end = self._offset + length
        if end > len(self._content):
            raise ValueError("it ends within its header")
        text = self._content[self._offset : end].decode("utf-8", errors="surrogateescape")
        self._offset = end
        return text

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._offset)
        self._offset += struct.calcsize(f"<{form}")
        return value
