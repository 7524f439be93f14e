"""Options of a model and of a request, put together and checked as Ollama does it only when a model runs (api/types.go)."""

from __future__ import annotations

import os
from typing import Any

CONTEXT = 4096
"""What a machine without a GPU gets if nobody asks for another."""

_INTEGERS = (
    "num_ctx num_batch num_gpu main_gpu num_thread draft_num_predict num_keep seed num_predict top_k repeat_last_n"
)
_NUMBERS = "top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty"

_DEFAULTS: dict[str, Any] = {
    "num_ctx": CONTEXT,
    "num_keep": 4,
    "seed": -1,
    "num_predict": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "temperature": 0.8,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stop": None,
}


class WrongType(Exception):
    """An option's value has another type than it must have; the text is Ollama's."""


def merged_options(of_model: dict[str, Any], of_request: dict[str, Any] | None) -> dict[str, Any]:
    """Return all options; the request's win. Names that Ollama does not know do nothing. Raises WrongType."""
    options = dict(_DEFAULTS)
    if os.environ.get("OLLAMA_CONTEXT_LENGTH", "0") != "0":
        options["num_ctx"] = int(os.environ["OLLAMA_CONTEXT_LENGTH"])
    for given in (of_model, of_request or {}):
        options |= {name: _checked(name, value) for name, value in given.items() if value is not None}
    return options


def _checked(name: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _INTEGERS.split():
        if not is_number:
            raise WrongType(f'option "{name}" must be of type integer')
        return int(value)
    if name in _NUMBERS.split():
        if not is_number:
            raise WrongType(f'option "{name}" must be of type float32')
        return float(value)
    if name == "use_mmap" and not isinstance(value, bool):
        raise WrongType('option "use_mmap" must be of type boolean')
    if name == "stop":
        if not isinstance(value, list):
            raise WrongType('option "stop" must be of type array')
        if not all(isinstance(text, str) for text in value):
            raise WrongType('option "stop" must be of an array of strings')
    return value
