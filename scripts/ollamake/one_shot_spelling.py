"""How people spell quantizations: llama.cpp's types in any case, and the words of transformers and bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ollamake.configuration_faults import nearest
from ollamake.errors import OllamakeError
from ollamake.quantization_types import QUANTIZATION_TYPES

AUTO = "auto"

_BITS = {"2": "Q2_K", "3": "Q3_K_M", "4": "Q4_K_M", "5": "Q5_K_M", "6": "Q6_K", "8": "Q8_0"}
"""The usual type of llama.cpp for a number of bits."""

_FLOATS = {
    "fp16": "F16",
    "float16": "F16",
    "half": "F16",
    "16bit": "F16",
    "bfloat16": "BF16",
    "fp32": "F32",
    "float32": "F32",
    "32bit": "F32",
}

_BITSANDBYTES = {"nf4": "Q4_K_M", "fp4": "Q4_K_M", "int4": "Q4_K_M", "int8": "Q8_0"}
"""Formats of bitsandbytes, and the type of llama.cpp of about that size."""

_BEFORE = re.compile(r"^(bitsandbytes|bnb|loadin|load_in)[-_]?")


def quantizations_of(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the types that ``words`` mean, each once, and a sentence for each word that was taken for another one.

    ``auto`` stays what it is, and has to be alone. Raises OllamakeError for a word that means no type, with the nearest ones.
    """
    types, said = [], []
    for word in words:
        meant, sentence = _meaning(word)
        types.append(meant)
        said += [sentence] if sentence and sentence not in said else []
    types = list(dict.fromkeys(types))
    if AUTO in types and len(types) > 1:
        others = ", ".join(kind for kind in types if kind != AUTO)
        raise OllamakeError(
            f"--quantization: auto takes what the plan recommends, so nothing can be given beside it; found {others}."
            " Give auto alone, or types."
        )
    return tuple(types), said


def _meaning(word: str) -> tuple[str, str | None]:
    spelled = word.strip().lower().replace("-", "_")
    if spelled == AUTO:
        return AUTO, None
    if spelled.upper() in QUANTIZATION_TYPES:
        return spelled.upper(), None
    short = _BEFORE.sub("", spelled).replace("_", "")
    if short in _FLOATS or short.upper() in ("F16", "BF16", "F32"):
        return _FLOATS.get(short, short.upper()), None
    if short in _BITSANDBYTES:
        meant = _BITSANDBYTES[short]
        return meant, (
            f"--quantization {word}: a format of bitsandbytes, which Ollama cannot read. It is taken for {_size(meant)},"
            " llama.cpp's type of about that size; a bitsandbytes checkpoint is not written."
        )
    bits = re.fullmatch(r"q?([234568])(bits?)?", short)
    if bits:
        meant = _BITS[bits[1]]
        return meant, f"--quantization {word}: taken for {_size(meant)}, llama.cpp's usual type of {bits[1]} bits."
    close = nearest(spelled, QUANTIZATION_TYPES) or ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    raise OllamakeError(
        f"--quantization: {word!r} is not a type of llama-quantize. Did you mean {', '.join(close[:-1])}"
        f"{' or ' * (len(close) > 1)}{close[-1]}? 4bit, 8bit and fp16 are understood, too, and auto takes the best that fits."
    )


def _size(kind: str) -> str:
    return f"{kind} ({QUANTIZATION_TYPES[kind].bits_per_weight:.2f} bits a weight)"
