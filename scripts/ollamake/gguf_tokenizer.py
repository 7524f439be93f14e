"""What of a GGUF's tokenizer decides how a model is prompted and where it stops.

Keys: the GGUF specification (docs/gguf.md in ggml). Defaults and the texts that end an answer: llama.cpp's
src/llama-vocab.cpp, which Ollama runs for most architectures.
"""

from __future__ import annotations

import hashlib
from typing import Any

from gguf import GGUFReader

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


def tokenizer_facts(reader: GGUFReader) -> dict[str, Any] | None:
    """Return the facts of a GGUF's tokenizer, or None if it has none.

    ``adds_bos``: whether a BOS is put before each prompt; ``bos``, ``eos``: their texts or None; ``end_tokens``: text -> id
    of each token that ends an answer; ``chat_template``: the sha256 of the Jinja template or None.
    """
    tokens = _value(reader, "tokens")
    if tokens is None:
        return None
    kind = str(_value(reader, "model"))
    adds_bos = _value(reader, "add_bos_token")
    if adds_bos is None:
        adds_bos = kind in ("llama", "bert") or (kind == "gpt2" and _value(reader, "pre") in _ADDS_BOS)
    # Whatever its metadata say.
    adds_bos = adds_bos or "gemma4" in (kind, _value(reader, "pre"))
    ends = {_value(reader, f"{name}_token_id") for name in ("eos", "eot", "eom")}
    end_tokens = {text: number for number, text in enumerate(tokens) if number in ends or text in _END_TEXTS}
    for text in [text for text, others in _NO_END_BESIDE if all(other in end_tokens for other in others)]:
        end_tokens.pop(text, None)
    template = reader.fields.get("tokenizer.chat_template")
    return {
        "model": kind,
        "adds_bos": bool(adds_bos),
        "bos": _text(tokens, _value(reader, "bos_token_id")),
        "eos": _text(tokens, _value(reader, "eos_token_id")),
        "end_tokens": end_tokens,
        "chat_template": hashlib.sha256(str(template.contents()).encode()).hexdigest() if template else None,
    }


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(f"tokenizer.ggml.{key}")
    return None if field is None else field.contents()


def _text(tokens: list[str], number: int | None) -> str | None:
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None
