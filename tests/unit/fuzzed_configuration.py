"""Configurations that nobody would write: made from the schema, from real ones with something changed, and from raw bytes.

Whatever a file has in it, it is read, or refused by an OllamakeError. Everything else that is raised is a defect.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from ollamake.configuration import Configuration, read_configuration
from ollamake.configuration_file import read_configuration_file
from ollamake.errors import OllamakeError
from ollamake.placeholders import require_no_placeholders
from ollamake.quantization_types import QUANTIZATION_TYPES

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "config/schemas/config.schema.yaml"
REAL = sorted([ROOT / "config/config.yaml", *(ROOT / "config/examples").glob("*.yaml")])

HOSTILE_TEXTS = (
    "$(touch PWNED)", "; touch PWNED", "`touch PWNED`", "a b", "-rf", "--help", "'", '"', '"""', "a\nb", "a\x00b", "\x1b[2J",
    "\u202e", "\u200b", "e\u0301", "日本語", "{model}", "{", "}", "{{", "{0}", "%s", "%(x)s", "..", "../..", "/",
    "//", "~", "~nobody/x", "$HOME", "\ud800",
    "x" * 300, "x/" * 3000, "org/name", "org/name@main", "http://[::1", "host:99999999", ":", "0", "auto", "null",
    "https://user:secret@host/", "/CHANGE/ME", "*", "?__import__('os')", "name:tag:tag", "a/b/c/d:e",
)  # fmt: skip
"""What shells, filesystems, format strings, terminals, URLs and YAML take for something else than text."""

_texts = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=20)
_scalars = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -(10**20)]) | st.floats() | _texts | st.dates()
    | st.binary()
)  # fmt: skip
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts | st.integers() | st.none(), inner, max_size=3),
    max_leaves=6,
)


@cache
def schema() -> dict[str, Any]:
    """Return the schema of the configuration."""
    content: dict[str, Any] = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return content


def outcome(file: Path) -> Configuration | OllamakeError:
    """Read a configuration as the workflow does: from its bytes to what the rules are given."""
    try:
        content = read_configuration_file(file)
        configuration = read_configuration(content, SCHEMA)
        require_no_placeholders(content)
    except OllamakeError as error:
        return error
    return configuration


def files() -> st.SearchStrategy[bytes]:
    """Return a strategy of the bytes of configuration files."""
    written = (_of_schema(schema()) | mutated()).map(
        lambda content: yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    return (
        written
        | _edited()
        | st.binary(max_size=200)
        | st.text(alphabet="a:-?[]{},&*!|>'\"%@`#\n\t 0.<~=$", max_size=80).map(str.encode)
    )


def _of_schema(part: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of values that a part of the schema allows in kind, and now and then of others."""
    return st.integers(0, 15).flatmap(lambda dice: _anything if dice == 0 else _allowed(part))


def _allowed(part: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in part:
        return st.deferred(lambda: _allowed(schema()["$defs"][part["$ref"].removeprefix("#/$defs/")]))
    if "enum" in part:
        return st.sampled_from(part["enum"])
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    return st.one_of(*(_of_kind(kind, part) for kind in kinds))


def _of_kind(kind: str, part: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    match kind:
        case "object" if "properties" in part or "additionalProperties" in part:
            keys = {
                key: st.deferred(lambda inner=inner: _of_schema(inner))
                for key, inner in part.get("properties", {}).items()
            }
            others = part.get("additionalProperties")
            named = st.sampled_from(["m", "m-base", "a.b", "x" * 80]) | _texts
            more = st.dictionaries(named, _of_schema(others), min_size=1, max_size=3) if others else st.just({})
            required = {key: keys.pop(key) for key in part.get("required", ()) if key in keys}
            some = st.fixed_dictionaries(required, optional=keys)
            return st.builds(lambda one, other: other | one, some, more)
        case "object":
            return st.dictionaries(
                st.sampled_from(["temperature", "num_ctx", "stop", "seed", "mirostat"]) | _texts, _anything, max_size=3
            )
        case "array":
            return st.lists(_of_schema(part["items"]), max_size=3)
        case "string" if part.get("format") == "quantization":
            return st.sampled_from(sorted(QUANTIZATION_TYPES)) | _texts
        case "string":
            return _texts | st.just("auto")
        case "integer":
            return st.integers(part.get("minimum", -5), part.get("maximum", 10**6))
        case "number":
            return st.floats(part.get("minimum"), part.get("maximum")) | st.integers(0, 3)
        case "boolean":
            return st.booleans()
    return st.none()


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Draw a real configuration in which a few values are something else, missing, or stand elsewhere."""
    content = copy.deepcopy(yaml.safe_load(draw(st.sampled_from(REAL)).read_text(encoding="utf-8")))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["alike", "alike", "alike", "other", "moved", "removed", "added"])):
            case "alike":
                holder[key] = draw(_alike(holder[key]))
            case "removed":
                del holder[key]
            case "moved":
                other, its_key = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[its_key]) if _is_there(other, its_key) else None
            case "added" if isinstance(holder, dict):
                holder[draw(_texts)] = draw(_anything)
            case _:
                holder[key] = draw(_anything)
    return content


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of values of the same kind, which pass for what is expected."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int | float):
        return st.integers(0, 10_000) | st.floats(0, 100)
    if isinstance(value, str):
        return _texts | st.sampled_from(sorted(QUANTIZATION_TYPES))
    return st.permutations(value) if isinstance(value, list) else st.just(value)


def _is_there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)


@st.composite
def _edited(draw: st.DrawFn) -> bytes:
    """Draw the text of a real configuration with bytes cut out and put in."""
    text = draw(st.sampled_from(REAL)).read_bytes()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 12))
        put = draw(
            st.binary(max_size=4)
            | st.sampled_from([b"\t", b"&a ", b"*a", b"!!set ", b"<<: ", b"\n", b": ", b"- ", b"{", b"[", b"'", b"? "])
        )
        text = text[:place] + put + text[place + cut :]
    return text
