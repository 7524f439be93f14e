"""JSON that came with a model, as config.json and its like: read so that whatever stands in it can be worked with, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError

MOST_BYTES = 200_000_000
"""Of a file: several times the largest tokenizer.json and the index of DeepSeek-V3."""
_MOST_NESTED = 100
"""Levels; of what is deeper, something further on would not get to the bottom."""
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, unique_keys: bool = False) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError for what is none, and for what could not be written again.

    That is half a surrogate pair in a text, which is no character. Nothing may be nested more than a hundred levels deep;
    with ``unique_keys`` no key may stand twice in an object.
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates if unique_keys else None)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MOST_NESTED} levels deep") from None
    _require_shallow(value)
    if _HALF_A_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
    return value


def read_json(path: Path) -> Any:
    """Return the value in a file. Raises OllamakeError, naming it, if it cannot be read or is no JSON."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 1_000_000} MB")
        return parse_json(content)
    except (OSError, ValueError) as error:
        raise OllamakeError(f"{path} cannot be read as JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raises OllamakeError, naming it, if it cannot be read or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise OllamakeError(f"{path}: expected a JSON object.")
    return value


def _require_shallow(value: Any) -> None:
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        if depth > _MOST_NESTED:
            raise ValueError(f"it is nested more than {_MOST_NESTED} levels deep")
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands there twice")
    return table
