"""What of a GGUF's tokenizer decides how a model is prompted and where it stops.

Keys: the GGUF specification (docs/gguf.md in ggml). Defaults and the texts that end an answer: llama.cpp's
src/llama-vocab.cpp, which Ollama runs for most architectures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

_END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
    *("<turn|>", "<end_of_utterance>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
)
"""Tokens of these texts end an answer whatever the metadata say."""

_NO_END_BESIDE = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|call|>", "<|flush|>")),
    ("<|end|>", ("<|calls|>", "<|flush|>")),
    ("<|end|>", ("<|calls|>", "<|return|>")),
    ("</s>", ("<|tool_response>",)),
    ("</s>", ("<|plamo:eos|>",)),
)
"""A text and others beside which it does not end an answer: there it ends a part of one, or is an ordinary text."""

_ADDS_BOS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken", "chameleon"),
)
"""Pre-tokenizers of byte-level vocabularies before whose prompts a BOS is put where the metadata do not say."""


KEYS = (
    *(f"tokenizer.ggml.{key}" for key in ("tokens", "model", "add_bos_token", "pre", "bos_token_id", "eos_token_id")),
    *("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id", "tokenizer.chat_template"),
)
"""Metadata that ``tokenizer_facts`` reads."""


def tokenizer_facts(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the facts of a GGUF's tokenizer from its metadata (``KEYS``), or None if it has none.

    ``adds_bos``: whether a BOS is put before each prompt; ``bos``, ``eos``: their texts or None; ``end_tokens``: text -> id
    of each token that ends an answer; ``chat_template``: the sha256 of the Jinja template or None.
    Raises ValueError for values of another type than the specification gives them.
    """
    tokens = _value(metadata, "tokens")
    if tokens is None:
        return None
    _require_types(metadata)
    kind = str(_value(metadata, "model"))
    adds_bos = _value(metadata, "add_bos_token")
    if adds_bos is None:
        adds_bos = kind in ("llama", "bert") or (kind == "gpt2" and _value(metadata, "pre") in _ADDS_BOS)
    # Whatever its metadata say.
    adds_bos = adds_bos or "gemma4" in (kind, _value(metadata, "pre"))
    ends = {_value(metadata, f"{name}_token_id") for name in ("eos", "eot", "eom")}
    end_tokens = {text: number for number, text in enumerate(tokens) if number in ends or text in _END_TEXTS}
    for text in [text for text, others in _NO_END_BESIDE if all(other in end_tokens for other in others)]:
        end_tokens.pop(text, None)
    template = metadata.get("tokenizer.chat_template")
    return {
        "model": kind,
        "adds_bos": bool(adds_bos),
        "bos": _text(tokens, _value(metadata, "bos_token_id")),
        "eos": _text(tokens, _value(metadata, "eos_token_id")),
        "end_tokens": end_tokens,
        "chat_template": hashlib.sha256(template.encode("utf-8", errors="surrogateescape")).hexdigest()
        if template
        else None,
    }


def _require_types(metadata: Mapping[str, Any]) -> None:
    tokens = _value(metadata, "tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("tokenizer.ggml.tokens is no list of texts")
    for key in KEYS[1:]:
        kind = bool if key.endswith("add_bos_token") else int if key.endswith("_id") else str
        value = metadata.get(key)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{key} is {str(value)[:80]!r}, not of the type that the specification says")


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    return metadata.get(f"tokenizer.ggml.{key}")


def _text(tokens: list[str], number: int | None) -> str | None:
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None
