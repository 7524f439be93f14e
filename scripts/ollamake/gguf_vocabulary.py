"""The vocabulary of a GGUF: its size, and whether the probabilities of two models are of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ollamake.errors import OllamakeError
from ollamake.gguf_header import read_gguf_header

_NORMAL = 1
"""Type of a token that is ordinary text (llama_token_type); special and unused ones may be renamed by a fine-tune."""
_KEYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.add_eos_token")


@dataclass(frozen=True)
class Vocabulary:
    """``tokens``: the texts by id; ``types``: llama.cpp's number of the kind of each, or None; ``adds_eos``: as stored."""

    tokens: list[str]
    types: list[int] | None
    adds_eos: bool


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF. Raises OllamakeError if it has none or cannot be read."""
    try:
        values = read_gguf_header(path, _KEYS).values
    except (ValueError, OSError) as error:
        raise OllamakeError(
            f"{path} cannot be read as a GGUF ({error}). Remove it and run the workflow again."
        ) from error
    tokens, types, adds_eos = (values.get(key) for key in _KEYS)
    lists = [value for value in (tokens, types) if value is not None]
    if not all(isinstance(value, list) for value in lists) or len({len(value) for value in lists}) > 1:
        raise OllamakeError(f"{path}: expected tokenizer.ggml.tokens and .token_type to be two lists of one length.")
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
