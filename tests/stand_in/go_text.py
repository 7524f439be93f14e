"""Texts as Go's standard library writes them: JSON, `%v` and `%#v`, errors, times and durations.

Ollama's manifest, config and params blobs are the bytes of encoding/json, and what it shows of parameters are the texts of
fmt; their digests and a reader of them depend on every character.
"""

from __future__ import annotations

import json
import math
import re
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Float32(float):
    """A number that Go has as float32, which prints the shortest digits that give back 32 bits."""


def go_json(value: Any, *, sort_keys: bool = False, escape_html: bool = True) -> str:
    """Return JSON as encoding/json does: compact, no newline. Maps have sorted keys there, structs their fields' order."""
    if isinstance(value, str):
        text = json.dumps(value.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), ensure_ascii=False)
        for character in "<>&\u2028\u2029" if escape_html else "\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        options: dict[str, Any] = {"sort_keys": sort_keys, "escape_html": escape_html}
        return "{" + ",".join(f"{go_json(str(key), **options)}:{go_json(item, **options)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(go_json(item, sort_keys=sort_keys, escape_html=escape_html) for item in value) + "]"
    if isinstance(value, float):
        return _json_float(value)
    return json.dumps(value)


def decoded(value: Any) -> Any:
    """Return JSON as Go decodes it into `any`: every number is a float64."""
    if isinstance(value, dict):
        return {key: decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def shown(value: Any) -> str:
    """Return `%v`."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "<nil>"
    if isinstance(value, float):
        return _general_float(value)
    if isinstance(value, list):
        return "[" + " ".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{shown(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)


def shown_as_literal(value: Any) -> str:
    """Return `%#v`: as `%v`, but texts are Go literals and containers have their types."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[]interface {}{" + ", ".join(map(shown_as_literal, value)) + "}"
    if isinstance(value, dict):
        items = (f"{quoted(key)}:{shown_as_literal(item)}" for key, item in sorted(value.items()))
        return "map[string]interface {}{" + ", ".join(items) + "}"
    return shown(value)


def quoted(text: str) -> str:
    """Return a text as strconv.Quote does."""
    named = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 34: '\\"', 92: "\\\\"}

    def escaped(character: str) -> str:
        code = ord(character)
        if code in named:
            return named[code]
        if character.isprintable():
            return character
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def human_number(count: int) -> str:
    """Return a number of parameters as Ollama's format.HumanNumber does: 90K, 494.03M, 7.6B."""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f}{name}"
    return str(count)


def file_error(operation: str, path: object, error: OSError) -> str:
    """Return what Go says of a failed operation on a file."""
    reason = error.strerror or str(error)
    return f"{operation} {path}: {reason[:1].lower()}{reason[1:]}"


def moment(nanoseconds: int) -> str:
    """Return a time since 1970 as JSON has it: RFC 3339 with as many digits as needed."""
    seconds, rest = divmod(nanoseconds, 10**9)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def parsed_duration(value: Any) -> float:
    """Return the seconds of a keep_alive: a number of them, or a text like 1h30m. Raises ValueError; below 0 is for ever."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    if not isinstance(value, str):
        raise ValueError(f"Unsupported type: '{type(value).__name__}'")
    text = value.lstrip("+-")
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if "".join(map("".join, parts)) != text or not text:
        if text == "0":
            return 0.0
        trouble = "missing unit in" if re.fullmatch(r"[\d.]+", text) else "invalid"
        raise ValueError(f"time: {trouble} duration {quoted(value)}")
    return math.inf if value.startswith("-") else sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _shortest(value: float) -> str:
    """Return the shortest digits that give the value back, as Python writes them."""
    if not isinstance(value, Float32):
        return float.__repr__(value)
    for digits in range(1, 10):
        text = f"{float(value):.{digits}g}"
        if struct.pack("f", float(text)) == struct.pack("f", value):
            return text
    raise AssertionError("nine digits are enough for 32 bits")


def _exponent(text: str) -> int:
    return Decimal(text).adjusted()


def _json_float(value: float) -> str:
    text = _shortest(value)
    if value and not 1e-6 <= abs(float(text)) < 1e21:
        # encoding/json: e-09 becomes e-9; large exponents keep their plus sign.
        return re.sub(r"e-0(\d)$", r"e-\1", _scientific(text))
    return _plain(text)


def _general_float(value: float) -> str:
    """Return strconv's 'g' of the shortest digits: an exponent from 1e+06 on, and below 1e-04."""
    text = _shortest(value)
    return _scientific(text) if value and not -4 <= _exponent(text) < 6 else _plain(text)


def _plain(text: str) -> str:
    plain = f"{Decimal(text):f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _scientific(text: str) -> str:
    sign, digits, _ = Decimal(text).as_tuple()
    mantissa = "".join(map(str, digits)).rstrip("0") or "0"
    point = mantissa[0] + ("." + mantissa[1:] if len(mantissa) > 1 else "")
    exponent = _exponent(text)
    return f"{'-' if sign else ''}{point}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
