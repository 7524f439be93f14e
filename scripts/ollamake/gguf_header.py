"""What stands before the weights of a GGUF (ggml's docs/gguf.md): metadata, and a table of the tensors.

The gguf package takes seconds for a vocabulary of 150 k tokens, and refuses a file with one tensor of a type that is newer than
the package; the pinned llama.cpp makes such files. So the header is read here.
"""

from __future__ import annotations

import math
import mmap
import os
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

_MOST_OF_HEADER = 200_000_000
"""Bytes: ten times those of a vocabulary of 262 k tokens with its merges."""
_MOST_DIMENSIONS = 4
"""GGML_MAX_DIMS of ggml.h."""
_MOST_ELEMENTS = 2**56
"""Of which no type has so large ones that numpy could not count their bytes, whatever a size of 0 makes of them."""
_SHOWN = 100
"""Characters of a name that a message shows: it is a stranger's, and may be millions of characters long."""
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

    Raises ValueError if it is no GGUF, ends within its header or before its tensors do, or says what llama.cpp refuses: a name
    twice, a list of lists, an alignment that is no power of 2, tensors that overlap. OSError if it cannot be opened.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # The weights are not mapped: where memory is limited (RLIMIT_AS) they may be more than that.
        with mmap.mmap(file.fileno(), min(size, _MOST_OF_HEADER), access=mmap.ACCESS_READ) as content:
            return _Reader(content, size).header(keys)


class _Reader:
    """Reads the header from its beginning to its end. Raises ValueError where it is none."""

    def __init__(self, content: mmap.mmap, size: int) -> None:
        self._content, self._size = content, size
        self._offset = 4
        version = self._number("I")
        if content[:4] != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {content[:4]!r} and version {version}")

    def header(self, keys: Collection[str]) -> GgufHeader:
        tensors, pairs = self._number("Q"), self._number("Q")
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for _ in range(pairs):
            key = self._name(seen, "key")
            kind = GGUFValueType(self._number("I"))
            value = self._value(kind, key in keys or key == _ALIGNMENT)
            if key == _ALIGNMENT and (kind != GGUFValueType.UINT32 or value < 1 or value & (value - 1)):
                raise ValueError(f"{_ALIGNMENT} is {value}, not a power of 2")
            if key in keys or key == _ALIGNMENT:
                values[key] = value
        seen = set()
        table = [self._tensor(seen) for _ in range(tensors)]
        alignment = values.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
        begin = -(-self._offset // alignment) * alignment
        stored = [StoredTensor(name, kind, elements, begin + offset) for name, kind, elements, offset in table]
        _require_apart(stored, self._size)
        return GgufHeader({key: value for key, value in values.items() if key in keys}, stored)

    def _tensor(self, seen: set[str]) -> tuple[str, int, int, int]:
        name = self._name(seen, "tensor")
        count = self._number("I")
        if not 0 < count <= _MOST_DIMENSIONS:
            raise ValueError(f"{name[:_SHOWN]!r} has {count} dimensions")
        shape = [self._number("Q") for _ in range(count)]
        kind, elements = self._number("I"), math.prod(shape)
        # Rows of whole blocks, as ggml wants them.
        if math.prod(size for size in shape if size) > _MOST_ELEMENTS or (shape[0] % BLOCK_SIZES.get(kind, (1, 0))[0]):
            raise ValueError(f"{name[:_SHOWN]!r}, {shape}, cannot be a tensor of type {kind}")
        return name, kind, elements, self._number("Q")

    def _value(self, kind: GGUFValueType, wanted: bool) -> Any:
        """Return a value, or None for a list that is not wanted: of these there may be millions of numbers."""
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._number(_FORMATS[kind])
        kind, count = GGUFValueType(self._number("I")), self._number("Q")
        if kind == GGUFValueType.ARRAY:
            raise ValueError("it has a list of lists")  # which ggml refuses, too
        if kind == GGUFValueType.STRING:
            if not wanted:
                for _ in range(count):
                    self._skip(self._number("Q"))
                return None
            return [self._string() for _ in range(count)]
        begin = self._offset
        self._skip(count * struct.calcsize(_FORMATS[kind]))
        return list(struct.unpack_from(f"<{count}{_FORMATS[kind]}", self._content, begin)) if wanted else None

    def _name(self, seen: set[str], what: str) -> str:
        name = self._string("strict")  # names are read by others, too; the texts of tokens may be any bytes
        if name in seen:
            raise ValueError(f"the {what} {name[:_SHOWN]!r} stands there twice")
        seen.add(name)
        return name

    def _string(self, errors: str = "surrogateescape") -> str:
        begin = self._offset + struct.calcsize("Q")
        self._skip(self._number("Q"))
        return self._content[begin : self._offset].decode("utf-8", errors)

    def _number(self, form: str) -> Any:
        begin = self._offset
        self._skip(struct.calcsize(form))
        (value,) = struct.unpack_from(f"<{form}", self._content, begin)
        return value

    def _skip(self, size: int) -> None:
        self._offset += size
        if self._offset > len(self._content):
            what = "it ends within its header" if self._size == len(self._content) else "its header has no end"
            raise ValueError(f"{what} ({len(self._content)} bytes)")


def _require_apart(tensors: list[StoredTensor], size: int) -> None:
    """Raise ValueError for tensors that overlap, or are not within a file of ``size`` bytes."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if tensor.begin < end:
            raise ValueError(f"{tensor.name[:_SHOWN]!r} begins at {tensor.begin}, another tensor ends at {end}")
        end = tensor.begin + (tensor.size if tensor.kind in BLOCK_SIZES else 0)
        if end > size:
            raise ValueError(f"it ends after {size} bytes, {tensor.name[:_SHOWN]!r} needs {end}")
