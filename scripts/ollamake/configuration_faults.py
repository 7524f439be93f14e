"""The faults of a configuration, in words.

The messages of JSON Schema are rewritten for people: the key's path, what was expected, what was found and the nearest
thing that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from ollamake.quantization_types import QUANTIZATION_TYPES

_FORMATS = FormatChecker(formats=())


@_FORMATS.checks("quantization")
def _is_quantization(value: object) -> bool:
    return value in QUANTIZATION_TYPES


def configuration_faults(raw: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return every fault of ``raw`` (parsed YAML) against ``schema``, one a line, each with the path of its key."""
    validator = Draft202012Validator(schema, format_checker=_FORMATS)
    errors = sorted(validator.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
    return [line for error in errors for line in _explain(error)]


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` known words that look like ``word``, whatever its case, the likeliest first."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[match] for match in matches]


def _explain(error: ValidationError) -> list[str]:
    """Say one fault of the schema in words; one line a fault."""
    key = _path(error.absolute_path)
    where = f"{key}: " if key else ""
    value = error.instance
    match error.validator:
        case "additionalProperties":
            return [_unknown_key(key, name, error.schema["properties"]) for name in _unknown(error)]
        case "format":
            close = nearest(str(value), QUANTIZATION_TYPES) or sorted(QUANTIZATION_TYPES)
            return [f"{where}{value!r} is not a type of llama-quantize. Did you mean {_either(close)}?"]
        case "enum":
            return [f"{where}expected one of {', '.join(map(str, error.validator_value))}; found {value!r}"]
        case "type":
            expected = error.validator_value
            wanted = " or ".join(expected) if isinstance(expected, list) else expected
            return [f"{where}expected {wanted.replace('object', 'keys with values')}; found {value!r}"]
        case "required":
            return [f"{where}missing key(s): {', '.join(k for k in error.validator_value if k not in value)}"]
        case "pattern" if error.validator_value == "^auto$":
            return [f"{where}expected auto, or a list of types such as [Q4_K_M]; found {value!r}"]
        case "pattern":
            return [
                f"{where}{value!r} cannot be a model's name. It names a folder below results/ and a model in Ollama:"
                " lower-case letters a-z, digits, dot, dash and underscore, at most 80, beginning with a letter or digit"
            ]
        case "exclusiveMinimum" | "minimum" | "maximum":
            bound = {"exclusiveMinimum": "more than", "minimum": "at least", "maximum": "at most"}[error.validator]
            return [f"{where}expected {bound} {error.validator_value}; found {value!r}"]
        case "minProperties" | "minItems":
            return [f"{where}is empty; at least one is needed"]
        case "minLength":
            return [f"{where}is an empty text"]
        case "uniqueItems":
            return [f"{where}the same value stands there twice: {value!r}"]
    return [f"{where}{error.message}"]


def _unknown(error: ValidationError) -> list[str]:
    return [str(name) for name in error.instance if name not in error.schema["properties"]]


def _unknown_key(key: str, name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known, count=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
    return f"{key + '.' if key else ''}{name}: unknown key. {hint}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _path(parts: Iterable[str | int]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
