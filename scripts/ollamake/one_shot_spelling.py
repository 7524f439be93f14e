"""How people spell quantizations: llama.cpp's types in any case, and the words of transformers and bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

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

_CHECKPOINTS = {"nf4": "nf4", "int8": "int8"} | dict.fromkeys(("bnb4bit", "4bitbnb", "bnb4"), "nf4")
_CHECKPOINTS |= dict.fromkeys(("bnb8bit", "8bitbnb", "bnb8", "llmint8", "llm.int8"), "int8")
"""Formats of bitsandbytes that checkpoints are made in."""

_ELSEWHERE = {"fp4": "Q4_K_M", "int4": "Q4_K_M"}
"""Other formats of transformers, and the type of llama.cpp of about that size."""

_BEFORE = re.compile(r"^(bitsandbytes|bnb|loadin|load_in)[-_]?")


class Meant(NamedTuple):
    """What words mean: types of llama.cpp, bitsandbytes checkpoints, and a sentence for what is not as it was said."""

    types: tuple[str, ...]
    checkpoints: tuple[str, ...]
    said: list[str]


def quantizations_of(words: Sequence[str]) -> Meant:
    """Return what ``words`` mean, each once, and a sentence for each word that was taken for another one.

    ``auto`` stays what it is, and no type can stand beside it. Raises OllamakeError for a word that means nothing, with the
    nearest ones.
    """
    types, checkpoints, said = [], [], []
    for word in words:
        if precision := _checkpoint(word):
            checkpoints.append(precision)
            sentence: str | None = (
                f"--quantization {word}: a bitsandbytes checkpoint for transformers and vLLM, in bitsandbytes/{precision} beside"
                " the GGUFs. Ollama cannot read it; what is registered there is a type of llama.cpp."
            )
        else:
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
    return Meant(tuple(types), tuple(dict.fromkeys(checkpoints)), said)


def _checkpoint(word: str) -> str | None:
    """Return the format of bitsandbytes that a word means, None if it means none."""
    spelled = word.strip().lower().replace("bitsandbytes", "bnb")
    short = re.sub("[-_ ]", "", spelled)
    return _CHECKPOINTS.get(short) or _CHECKPOINTS.get(short.removeprefix("bnb"))


def _meaning(word: str) -> tuple[str, str | None]:
    spelled = word.strip().lower().replace("-", "_")
    if spelled == AUTO:
        return AUTO, None
    if spelled.upper() in QUANTIZATION_TYPES:
        return spelled.upper(), None
    short = _BEFORE.sub("", spelled).replace("_", "")
    if short in _FLOATS or short.upper() in ("F16", "BF16", "F32"):
        return _FLOATS.get(short, short.upper()), None
    if short in _ELSEWHERE:
        meant = _ELSEWHERE[short]
        return meant, (
            f"--quantization {word}: a format of transformers, which Ollama cannot read. It is taken for {_size(meant)},"
            " llama.cpp's type of about that size."
        )
    bits = re.fullmatch(r"q?([234568])(bits?)?", short)
    if bits:
        meant = _BITS[bits[1]]
        return meant, f"--quantization {word}: taken for {_size(meant)}, llama.cpp's usual type of {bits[1]} bits."
    close = nearest(spelled, QUANTIZATION_TYPES) or ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    raise OllamakeError(
        f"--quantization: {word!r} is not a type of llama-quantize. Did you mean {', '.join(close[:-1])}"
        f"{' or ' * (len(close) > 1)}{close[-1]}? 4bit, 8bit and fp16 are understood, too, nf4 and int8 are checkpoints of"
        " bitsandbytes, and auto takes the best that fits."
    )


def _size(kind: str) -> str:
    return f"{kind} ({QUANTIZATION_TYPES[kind].bits_per_weight:.2f} bits a weight)"
