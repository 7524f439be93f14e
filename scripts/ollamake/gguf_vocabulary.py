"""The vocabulary of a GGUF: its size, and whether the probabilities of two models are of the same tokens.

The gguf package takes seconds for a vocabulary of 150 k tokens, so the key-value section is read here (ggml's docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from ollamake.errors import OllamakeError

_NORMAL = 1
"""Type of a token that is ordinary text (llama_token_type); special and unused ones may be renamed by a fine-tune."""
_KEYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.add_eos_token")
_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """``tokens``: the texts by id; ``types``: llama.cpp's number of the kind of each, or None; ``adds_eos``: as stored."""

    tokens: list[str]
    types: list[int] | None
    adds_eos: bool


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF. Raises OllamakeError if it has none or cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            values = _Section(content).values(_KEYS)
    except (ValueError, struct.error, OSError) as error:
        raise OllamakeError(
            f"{path} cannot be read as a GGUF ({error}). Remove it and run the workflow again."
        ) from error
    tokens, types, adds_eos = (values.get(key) for key in _KEYS)
    if not tokens:
        raise OllamakeError(
            f"{path} has no vocabulary (tokenizer.ggml.tokens), so llama-perplexity cannot read text with it."
        )
    return Vocabulary(tokens, types, bool(adds_eos))


def difference(one: Vocabulary, other: Vocabulary) -> str | None:
    """Return in words why the probabilities of the two cannot be compared token by token, or None if they can."""
    if len(one.tokens) != len(other.tokens):
        return f"the vocabularies have {len(one.tokens)} and {len(other.tokens)} tokens"
    pairs = zip(one.tokens, other.tokens, strict=True)
    differing = [number for number, (text, second) in enumerate(pairs) if text != second]
    normal = [number for number in differing if _is_normal(one, number) or _is_normal(other, number)]
    if normal:
        first = normal[0]
        return (
            f"{len(normal)} tokens have other texts in the two vocabularies, the first of them {first}:"
            f" {one.tokens[first]!r} and {other.tokens[first]!r}"
        )
    return None


def _is_normal(vocabulary: Vocabulary, number: int) -> bool:
    return vocabulary.types is None or vocabulary.types[number] == _NORMAL


class _Section:
    """Reads the key-value section from its beginning to its end. Raises ValueError or struct.error where it is none."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._offset = 4
        version = self._number("I")
        if content[:4] != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {content[:4]!r} and version {version}")
        self._number("Q")
        self._pairs = self._number("Q")

    def values(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Return key -> value of those ``keys`` that are there."""
        found = {}
        for _ in range(self._pairs):
            key, value = self._string(), self._value(GGUFValueType(self._number("I")))
            if key in keys:
                found[key] = value
        return found

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
            raise ValueError("it ends within its metadata")
        text = self._content[self._offset : end].decode("utf-8", errors="surrogateescape")
        self._offset = end
        return text

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._offset)
        self._offset += struct.calcsize(f"<{form}")
        return value
