"""The tokens of a long text, piece by piece, by the tokenizer of a checkpoint's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from ollamake.errors import OllamakeError
from ollamake.json_object import parse_json

_FIRST_GRAPHIC = 0x20
"""Bytes below are line feeds and tabs, which SentencePiece vocabularies write as bytes in every language."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer as llama.cpp uses it on a text: without tokens that are put before or behind.

    ``encode`` gives the ids of a text, ``unknown`` its parts that become the token ``unknown_id``, which stands for what the
    vocabulary has not. ``special_texts`` are the texts of the special tokens, ``byte_ids`` the tokens that are a single byte: a
    letter or a part of one.
    """

    encode: Callable[[str], list[int]]
    unknown: Callable[[str], list[str]]
    special_texts: tuple[str, ...]
    unknown_id: int | None
    byte_ids: frozenset[int]

    def ids(self, text: str, continued: bool = False) -> list[int]:
        """Return the ids of a text; ``continued``: it follows a line end, so no blank is thought to be before it."""
        if not continued:
            return self.encode(text)
        line_end = self.encode("\n")
        ids = self.encode("\n" + text)
        return ids[len(line_end) :] if ids[: len(line_end)] == line_end else self.encode(text)


def load_tokenizer(folder: Path, parse_special: bool) -> TextTokenizer:
    """Load the tokenizer of a checkpoint; ``parse_special``: texts of special tokens are these tokens, else plain text.

    tokenizer.json is read without transformers, which takes seconds to load. Raises OllamakeError if there is no tokenizer that
    can be loaded.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return _by_transformers(folder, parse_special)
    try:
        text = file.read_text(encoding="utf-8")
        return _of_backend(Tokenizer.from_str(text), parse_json(text), parse_special)
    except Exception as error:  # tokenizers raises nothing more special
        raise OllamakeError(f"{file} cannot be loaded as a tokenizer: {error}") from error


def _of_backend(tokenizer: Tokenizer, definition: Mapping[str, Any], parse_special: bool) -> TextTokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parse_special
    model = definition["model"]
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)

    def unknown_parts(text: str) -> list[str]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        places = [place for number, place in zip(encoding.ids, encoding.offsets, strict=True) if number == unknown]
        return [text[begin:end] for begin, end in places]

    return TextTokenizer(
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        unknown=unknown_parts,
        special_texts=tuple(one["content"] for one in definition.get("added_tokens") or [] if one.get("special")),
        unknown_id=unknown,
        byte_ids=_single_bytes(vocabulary, _has_byte_level(definition)),
    )


def _by_transformers(folder: Path, parse_special: bool) -> TextTokenizer:
    # Imported late: it takes seconds, and most checkpoints have a tokenizer.json.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what stands in a stranger's files may bring about any
        raise OllamakeError(f"transformers cannot load the tokenizer in {folder}: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _of_backend(backend, json.loads(backend.to_str()), parse_special)

    def encode(text: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": not parse_special, "verbose": False}
        return list(tokenizer(text, **options)["input_ids"])

    # What has no other form than SentencePiece's does not tell places, but its unknown pieces are characters.
    return TextTokenizer(
        encode=encode,
        unknown=lambda text: [one for one in dict.fromkeys(text) if tokenizer.unk_token_id in encode(one)],
        special_texts=tuple(tokenizer.all_special_tokens),
        unknown_id=tokenizer.unk_token_id,
        byte_ids=_single_bytes(tokenizer.get_vocab(), byte_level=False),
    )


def _has_byte_level(definition: Mapping[str, Any]) -> bool:
    """Whether tokens are written in GPT-2's alphabet of bytes: the decoder, or a part of it, says so."""
    decoder = definition.get("decoder") or {}
    return any(one.get("type") == "ByteLevel" for one in (decoder, *(decoder.get("decoders") or [])))


def _single_bytes(vocabulary: Mapping[str, int], byte_level: bool) -> frozenset[int]:
    if byte_level:
        # Digits, signs and blanks are tokens of their own in good vocabularies too; letters are not.
        letters = {one for one in ByteLevel.alphabet() if not one.isascii() or one.isalpha()} - {"Ġ", "Ċ", "ĉ", "č"}
        return frozenset(number for token, number in vocabulary.items() if token in letters)
    names = {f"<0x{byte:02X}>" for byte in range(_FIRST_GRAPHIC, 256)}
    return frozenset(number for token, number in vocabulary.items() if token in names)
