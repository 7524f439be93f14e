"""Reads and writes the header of a safetensors file, without torch and without its data.

Format: 8 bytes little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets; optionally
``__metadata__``), then the data, contiguous and without holes. Source: the "Format" section of safetensors' README.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.awaited_shards import awaited_header
from ollamake.errors import OllamakeError
from ollamake.json_object import parse_json
from ollamake.text_encoding import signature

MAX_HEADER = 100_000_000
"""Bytes: the format's own bound."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""dtype -> bits of one element."""

_MOST = 2**63 - 1
"""What torch, numpy and the library can count."""
_MOST_DIMENSIONS = 64
"""Of a tensor of torch and of numpy."""
_MOST_OF_NAME = 4_096
"""Characters: names are taken apart by patterns, which take long for a name without end."""
_SHOWN = 200
"""Characters of what a message shows of a header."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _SHOWN


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
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                if what := signature(head + file.read(64)):
                    raise OllamakeError(f"{path} is {what}; expected the tensors themselves. Fetch the file again.")
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
        return SafetensorsHeader(path, listed_tensors(size, content), 8 + len(content))
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def listed_tensors(size: int, content: bytes) -> tuple[TensorEntry, ...]:
    """Return the tensors of a file of ``size`` bytes by its header's JSON, in the order of their data.

    Raises ValueError, saying why, for what the safetensors library refuses, too: a key that stands twice, data that overlap or
    leave a gap, a size that is not that of dtype and shape, metadata that are no texts.
    """
    try:
        raw = parse_json(content, unique_keys=True)
    except ValueError as error:
        raise ValueError(f"its header is not JSON ({_short(error)})") from error
    # The library wants no white space before it.
    if not isinstance(raw, dict) or not content.startswith(b"{"):
        raise ValueError("its header is not a table of tensors")
    metadata = raw.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("its __metadata__ are not texts by name")
    tensors = sorted((_entry(name, value) for name, value in raw.items()), key=lambda t: (t.begin, t.end))
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise ValueError(f"tensor {_short(tensor.name)} begins at {tensor.begin}, the one before it ends at {end}")
        end = tensor.end
    if size != 8 + len(content) + end:
        raise ValueError(f"it has {size} bytes, its header describes {8 + len(content) + end}")
    return tuple(tensors)


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


def _entry(name: str, value: Any) -> TensorEntry:
    """Return a tensor of a header. Raises ValueError if it is none."""
    if len(name) > _MOST_OF_NAME:
        raise ValueError(f"the name of a tensor has {len(name)} characters ({_short(name)})")
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(f"the entry of tensor {_short(name)} is not one ({_short(value)})")
    if dtype not in BITS:
        raise ValueError(f"tensor {_short(name)} has the unknown dtype {_short(dtype)}")
    begin, end = offsets
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= _MOST for n in (*shape, begin, end)):
        raise ValueError(
            f"tensor {_short(name)} has the shape {_short(shape)} and the offsets {_short(begin)}, {_short(end)}"
        )
    bits = math.prod(shape) * BITS[dtype]
    if math.prod(n for n in shape if n) * BITS[dtype] > _MOST or bits % 8:
        raise ValueError(f"tensor {_short(name)}, {dtype} {_short(shape)}, is not of a number of bytes that can be")
    if end - begin != tensor_bytes(dtype, shape):
        raise ValueError(
            f"tensor {_short(name)} has {end - begin} bytes, {dtype} {_short(shape)} needs {tensor_bytes(dtype, shape)}"
        )
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _short(value: Any) -> str:
    """Return a value as a message can have it: it is a stranger's, and may be millions of characters long."""
    text = str(value) if isinstance(value, Exception) else _REPR.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _damaged(path: Path, what: str) -> OllamakeError:
    return OllamakeError(f"{path} is truncated or damaged: {what}. Fetch or save the file again.")
