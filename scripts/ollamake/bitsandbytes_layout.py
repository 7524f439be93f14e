"""Where the tensors of a quantized shard lie in its file, known before anything is quantized.

A safetensors file begins with the places of all tensors, and wide elements come first so that all are aligned. A quantized
matrix is narrow, and what it is scaled by is wide and known last; so the places are worked out from shapes alone, and each
tensor is written to its place. Only the length of bitsandbytes' `quant_state` text, which has a number in it, is not known:
these go last, and the header gets room for any length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

from ollamake.safetensors_header import BITS, header_bytes, tensor_bytes

Entry = tuple[str, str, tuple[int, ...]]
"""Name, dtype of safetensors, shape."""

NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
"""Weights that share an absolute maximum, and maxima that share one of their own (bitsandbytes.functional.quantize_4bit)."""
_LONGEST = 10_000
"""Bytes of a `quant_state` text, some 150 in fact; the header gets room for the digits of it."""


def nf4_entries(name: str, count: int) -> list[Entry]:
    """Return the tensors of ``count`` weights in NF4 with double quantization, but for `quant_state`."""
    blocks = -(-count // NF4_BLOCK)
    return [
        (name, "U8", (-(-count // 2), 1)),
        (f"{name}.absmax", "U8", (blocks,)),
        (f"{name}.quant_map", "F32", (16,)),
        (f"{name}.nested_absmax", "F32", (-(-blocks // NF4_NESTED_BLOCK),)),
        (f"{name}.nested_quant_map", "F32", (256,)),
    ]


def int8_entries(name: str, shape: tuple[int, ...]) -> list[Entry]:
    """Return the tensors of a matrix in LLM.int8()."""
    layer = name.removesuffix("weight")
    return [(name, "I8", shape), (f"{layer}SCB", "F32", shape[:1]), (f"{layer}weight_format", "U8", ())]


class PlacedTensors:
    """A safetensors file whose tensors are written in any order; ``late`` names those whose length is known last."""

    def __init__(self, file: BinaryIO, entries: Sequence[Entry], late: Sequence[str]) -> None:
        # The order of safetensors' own writer: wide elements first, then by name.
        self._entries = sorted(entries, key=lambda entry: (-BITS[entry[1]], entry[0]))
        self._late = sorted(late)
        longest = [(name, "U8", (_LONGEST,)) for name in self._late]
        self._room = len(header_bytes([*self._entries, *longest]))
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._missing: dict[str, int] = {}
        offset = self._room
        for name, dtype, shape in self._entries:
            size = tensor_bytes(dtype, shape)
            self._places[name] = (offset, offset + size)
            self._missing[name] = size
            offset += size
        self._end = offset

    def write(self, name: str, first: int, data: memoryview) -> None:
        """Write bytes of a tensor from its byte ``first`` on. Raises ValueError for bytes beyond its end."""
        begin, end = self._places[name]
        if begin + first + len(data) > end:
            raise ValueError(f"{name} has {end - begin} bytes; written were {len(data)} from {first} on")
        self._file.seek(begin + first)
        self._file.write(data)
        self._missing[name] -= len(data)

    def finish(self, late: Mapping[str, bytes]) -> list[Entry]:
        """Write the tensors that were known last, and the header; return all tensors.

        Raises ValueError if a tensor has not been written whole.
        """
        missing = sorted(name for name, size in self._missing.items() if size)
        if missing or sorted(late) != self._late or max(map(len, late.values()), default=0) > _LONGEST:
            raise ValueError(f"not written whole: {missing}; last came {sorted(late)}, expected {self._late}")
        self._file.seek(self._end)
        for name in self._late:
            self._file.write(late[name])
        entries = [*self._entries, *((name, "U8", (len(late[name]),)) for name in self._late)]
        header = header_bytes(entries)
        # The format allows blanks after the JSON, so that data may begin where there was room for it.
        text = header[8:] + b" " * (self._room - len(header))
        self._file.seek(0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        return entries
