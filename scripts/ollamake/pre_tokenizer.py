"""Names llama.cpp's pre-tokenizer for a tokenizer whose hash the converter does not know.

llama.cpp recognises a byte-level BPE tokenizer by hashing the token ids of a sample text (get_vocab_base_pre in
conversion/base.py), so every vocabulary of one's own is unknown to it, although the pre-tokenizer, the part that must be
named, is one it has. Here the pre-tokenizer's own definition in tokenizer.json is compared with those that llama.cpp
implements (src/llama-vocab.cpp, which quotes the original regular expressions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How a family splits text before BPE; ``ignore_merges`` as in tokenizer.json's model."""

    split: str
    ignore_merges: bool


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "qwen2": PreTokenizer(rf"{_LETTERS}|\p{{N}}|{_REST}", ignore_merges=False),
    "llama-bpe": PreTokenizer(rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}", ignore_merges=True),
}


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for the pre-tokenizer of a parsed tokenizer.json, or None if it has none like it.

    It must be Sequence[Split(regex, Isolated), ByteLevel(add_prefix_space=False, use_regex=False)]: the form in which
    the split is wholly the regular expression's.
    """
    model = tokenizer.get("model") or {}
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if model.get("type") != "BPE" or [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    plain = not byte_level.get("use_regex", True) and not byte_level.get("add_prefix_space", True)
    isolated = split.get("behavior") == "Isolated" and not split.get("invert", False)
    if not (plain and isolated):
        return None
    found = PreTokenizer(split["pattern"].get("Regex", ""), bool(model.get("ignore_merges", False)))
    return next((name for name, known in PRE_TOKENIZERS.items() if known == found), None)
