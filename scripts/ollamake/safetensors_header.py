"""Reads and writes the header of a safetensors file, without torch and without its data.

Format: 8 bytes little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets; optionally
``__metadata__``), then the data, contiguous and without holes. Source: the "Format" section of safetensors' README.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.awaited_shards import awaited_header
from ollamake.errors import OllamakeError

MAX_HEADER = 100_000_000
"""Bytes: the format's own bound."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""dtype -> bits of one element."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: shape as stored, [begin, end) in bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of one file; ``tensors`` in the order of their data, ``data_start`` in bytes from the file's start."""

    path: Path
    tensors: tuple[TensorEntry, ...]
    data_start: int


def tensor_bytes(dtype: str, shape: tuple[int, ...] | list[int]) -> int:
    """Return the bytes of a tensor. Raises KeyError for an unknown dtype."""
    return math.prod(shape) * BITS[dtype] // 8


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check a header. Raises OllamakeError naming the file for whatever is wrong with it.

    Of a file that is still to come the header is read that headers.json beside it has.
    """
    return parse_header(path, *read_raw_header(path))


def read_raw_header(path: Path) -> tuple[int, bytes]:
    """Return the bytes of a file and its header's JSON. Raises OllamakeError naming the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _damaged(path, f"its header should have {length} bytes, the file has {size}")
            return size, file.read(length)
    except OSError as error:
        awaited = awaited_header(path) if isinstance(error, FileNotFoundError) else None
        if awaited is not None:
            return awaited
        raise OllamakeError(f"{path} cannot be read: {error.strerror}") from error


def parse_header(path: Path, size: int, content: bytes) -> SafetensorsHeader:
    """Check a header's JSON and what it says about a file of ``size`` bytes. Raises OllamakeError naming ``path``."""
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _damaged(path, "its header is not a table of tensors")
    raw.pop("__metadata__", None)
    tensors = sorted((_entry(path, name, value) for name, value in raw.items()), key=lambda t: (t.begin, t.end))
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise _damaged(path, f"tensor {tensor.name!r} begins at {tensor.begin}, the one before it ends at {end}")
        end = tensor.end
    start = 8 + len(content)
    if size != start + end:
        raise _damaged(path, f"it has {size} bytes, its header describes {start + end}")
    return SafetensorsHeader(path, tuple(tensors), start)


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the header of a file with these (name, dtype, shape) in this order, data aligned to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + tensor_bytes(dtype, shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    try:
        dtype, shape = value["dtype"], tuple(value["shape"])
        begin, end = value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"the entry of tensor {name!r} is not one ({value!r})") from error
    if dtype not in BITS:
        raise _damaged(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    numbers = (*shape, begin, end)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise _damaged(path, f"tensor {name!r} has the shape {shape} and the offsets {begin!r}, {end!r}")
    if end - begin != tensor_bytes(dtype, shape):
        raise _damaged(
            path, f"tensor {name!r} has {end - begin} bytes, {dtype} {list(shape)} needs {tensor_bytes(dtype, shape)}"
        )
    return TensorEntry(name, dtype, shape, begin, end)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands there twice")
    return table


def _damaged(path: Path, what: str) -> OllamakeError:
    return OllamakeError(f"{path} is truncated or damaged: {what}. Fetch or save the file again.")
