"""The faults of a configuration, in words.

The messages of JSON Schema are rewritten for people: the key's path, what was expected, what was found and the nearest
thing that exists.
"""

from __future__ import annotations

import datetime
import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from ollamake.quantization_types import QUANTIZATION_TYPES

_FORMATS = FormatChecker(formats=())
_LARGEST_NUMBER = 1e15
_LONGEST_LINE, _LONGEST_NAME = 4096, 255
"""Bytes of a path and of a name in it, of which filesystems take no more."""
_TEXTS = ("system", "template", "license", "parameters")
"""Keys of `ollama` with texts of any form; all other texts are paths, names and addresses."""
_PATHS = frozenset({"base", "adapter", "path", "store", "llama_cpp", "questions", "text", "chat", "file"})
_MOST_FAULTS = 30

_found = reprlib.Repr()
_found.maxstring = _found.maxother = _found.maxlong = 160


@_FORMATS.checks("quantization")
def _is_quantization(value: object) -> bool:
    return not isinstance(value, str) or value in QUANTIZATION_TYPES  # what is no text is a fault of type


def configuration_faults(raw: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return every fault of ``raw`` (parsed YAML) against ``schema``, one a line, each with the path of its key."""
    validator = Draft202012Validator(schema, format_checker=_FORMATS)
    errors = sorted(validator.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
    faults = [line for error in errors for line in _explain(error)] + list(_unfit_values(raw, ()))
    more = len(faults) - _MOST_FAULTS
    return faults if more <= 0 else [*faults[:_MOST_FAULTS], f"and {more} more"]


def _unfit_values(value: Any, place: tuple[str | int, ...]) -> Iterator[str]:
    """Yield a fault of each number and text that its type allows, and of which nothing can be made."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _unfit_values(inner, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unfit_values(inner, (*place, number))
    elif isinstance(value, int | float) and not abs(value) < _LARGEST_NUMBER:
        what = "a number" if isinstance(value, int) or math.isfinite(value) else "a finite number"
        yield f"{_path(place)}: expected {what} below {_LARGEST_NUMBER:.0e}; found {_found.repr(value)}"
    elif isinstance(value, str) and (fault := _unfit_text(value, place)):
        yield f"{_path(place)}: {fault}; found {_found.repr(value)}"


def _is_line(place: tuple[str | int, ...]) -> bool:
    inside = place[place.index("ollama") + 1 :] if "ollama" in place else ()
    return not inside or inside[0] not in _TEXTS or place[-1] == "file"


def _unfit_text(text: str, place: tuple[str | int, ...]) -> str | None:
    """Return what is wrong with a text, or with a path, a name or an address, which are one line."""
    is_line = _is_line(place)
    unfit = [one for one in text if one == "\0" or "\ud800" <= one <= "\udfff" or (is_line and _is_control(one))]
    if unfit:
        return f"expected {'one line of ' if is_line else ''}text without the character U+{ord(unfit[0]):04X}"
    if is_line and text.startswith("-"):
        return "expected no dash at the beginning, which programs take for an option (give a path from / on)"
    if is_line and _PATHS.intersection(place[-2:]) and ("{" in text or "}" in text):
        return "expected a path without braces, which Snakemake takes for wildcards"
    size = len(text.encode("utf-8"))
    longest = max(len(name.encode("utf-8")) for name in text.split("/"))
    if is_line and (size > _LONGEST_LINE or longest > _LONGEST_NAME):
        return (
            f"expected at most {_LONGEST_LINE} bytes, and {_LONGEST_NAME} between two slashes, as filesystems take them;"
            f" this has {size} and {longest}"
        )
    return None


def _is_control(character: str) -> bool:
    """Whether a character ends the line or is taken for an order by a terminal."""
    return character < " " or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029"


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
    found = _found.repr(value)
    match error.validator:
        case "additionalProperties":
            return [_unknown_key(key, name, error.schema["properties"]) for name in _unknown(error)]
        case "format":
            close = nearest(str(value), QUANTIZATION_TYPES) or sorted(QUANTIZATION_TYPES)
            return [f"{where}{found} is not a type of llama-quantize. Did you mean {_either(close)}?"]
        case "enum":
            return [f"{where}expected one of {', '.join(map(str, error.validator_value))}; found {found}"]
        case "type":
            expected = error.validator_value
            wanted = " or ".join(expected) if isinstance(expected, list) else expected
            return [
                f"{where}expected {wanted.replace('object', 'keys with values')}; found {found}{_quotes(value, wanted)}"
            ]
        case "required":
            return [f"{where}missing key(s): {', '.join(k for k in error.validator_value if k not in value)}"]
        case "pattern" if error.validator_value == "^auto$":
            return [f"{where}expected auto, or a list of types such as [Q4_K_M]; found {found}"]
        case "pattern":
            return [
                f"{where}{found} cannot be a model's name. It names a folder below results/ and a model in Ollama:"
                " lower-case letters a-z, digits, dot, dash and underscore, at most 80, beginning with a letter or digit"
            ]
        case "exclusiveMinimum" | "minimum" | "maximum":
            bound = {"exclusiveMinimum": "more than", "minimum": "at least", "maximum": "at most"}[error.validator]
            return [f"{where}expected {bound} {error.validator_value}; found {found}"]
        case "minProperties" | "minItems":
            return [f"{where}is empty; at least one is needed"]
        case "minLength":
            return [f"{where}is an empty text"]
        case "uniqueItems":
            return [f"{where}the same value stands there twice: {found}"]
    return [f"{where}{error.message}"]


def _quotes(value: object, wanted: str) -> str:
    """Say that quotes make a text of what YAML takes for something else."""
    if "string" not in wanted or not isinstance(value, bool | int | float | datetime.date):
        return ""
    return "; YAML takes yes, no, on and off for true and false" * isinstance(value, bool) + "; in quotes it is a text"


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
