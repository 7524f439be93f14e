"""Ollama's runtime parameters: names, types and ranges, checked here because Ollama does not.

Its create accepts any name and any type; a wrong type then makes every later chat fail. Source: Options and Runner in
Ollama's api/types.go, and the list of names in parser/parser.go.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollamake.errors import OllamakeError


@dataclass(frozen=True)
class Parameter:
    """Type and inclusive range of one parameter."""

    kind: str
    low: float = -math.inf
    high: float = math.inf


PARAMETERS: dict[str, Parameter] = {
    "num_ctx": Parameter("int", 1),
    "num_batch": Parameter("int", 1),
    "num_gpu": Parameter("int", -1),
    "main_gpu": Parameter("int", 0),
    "num_thread": Parameter("int", 0),
    "draft_num_predict": Parameter("int", 0),
    "num_keep": Parameter("int", -1),
    "seed": Parameter("int"),
    "num_predict": Parameter("int", -2),
    "top_k": Parameter("int", 0),
    "repeat_last_n": Parameter("int", -1),
    "top_p": Parameter("float", 0, 1),
    "min_p": Parameter("float", 0, 1),
    "typical_p": Parameter("float", 0, 1),
    "temperature": Parameter("float", 0),
    "repeat_penalty": Parameter("float", 0),
    "presence_penalty": Parameter("float", -2, 2),
    "frequency_penalty": Parameter("float", -2, 2),
    "use_mmap": Parameter("bool"),
    "stop": Parameter("texts"),
}


def checked_parameters(parameters: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the parameters in the form in which they are sent: `stop` as a list, whole floats of int type as int.

    Raises OllamakeError naming ``key`` for an unknown name, a wrong type or a value out of range.
    """
    checked: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in PARAMETERS:
            close = difflib.get_close_matches(str(name).lower(), PARAMETERS, n=2, cutoff=0.5)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(PARAMETERS)}."
            raise OllamakeError(f"{key}.{name}: not a parameter of Ollama. {hint}")
        checked[name] = _checked(value, PARAMETERS[name], f"{key}.{name}")
    return checked


def _checked(value: Any, parameter: Parameter, key: str) -> Any:
    match parameter.kind:
        case "bool":
            if not isinstance(value, bool):
                raise OllamakeError(f"{key}: expected true or false; found {value!r}")
            return value
        case "texts":
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                raise OllamakeError(f"{key}: expected a text or a list of texts, none of them empty; found {value!r}")
            return list(texts)
        case "int":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if isinstance(value, bool) or not whole:
                raise OllamakeError(f"{key}: expected a whole number; found {value!r}")
            number: float = int(value)
        case _:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise OllamakeError(f"{key}: expected a number; found {value!r}")
            number = value
    if not parameter.low <= number <= parameter.high:
        bounds = (
            f"at least {parameter.low:g}" if parameter.high == math.inf else f"{parameter.low:g} to {parameter.high:g}"
        )
        raise OllamakeError(f"{key}: expected {bounds}; found {value!r}")
    return number
