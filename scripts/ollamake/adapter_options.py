"""What the fields of an adapter_config.json must be before anything is computed with them, whoever has written the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_MOST_RANK = 1 << 16
"""Twice the largest hidden size there is."""
_SHOWN = 80
"""Characters of a value that a message shows."""


def malformed(config: Mapping[str, Any]) -> str | None:
    """Return which field is not what it must be, and what it must be; None if all are.

    Fields that are null or not there have peft's defaults. Those of which nothing is computed may be anything.
    """
    for key, (is_good, expected) in _FIELDS.items():
        value = config.get(key)
        if value is not None and not is_good(value):
            return f"{key} is {_short(value)}; expected {expected}"
    if config.get("peft_type") == "LORA" and config.get("r") == 0:  # others have other sizes then
        return "r is 0; expected a whole number from 1 on"
    # peft's AdaLoRA has lists of yes and no there, by whole names.
    if config.get("peft_type") != "ADALORA" and not _is_table_of(_is_rank)(config.get("rank_pattern") or {}):
        return f"rank_pattern is {_short(config['rank_pattern'])}; expected whole numbers from 1 on by names"
    strange = next((value for value in _numbers(config) if not math.isfinite(value)), None)
    return None if strange is None else f"it has the number {strange}, with which nothing can be computed"


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MOST_RANK


def _is_number(value: Any) -> bool:
    # An int that is too large for a float is none that can be computed with.
    return type(value) in (int, float) and abs(value) < 1e30


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_good, value))


def _is_table_of(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(is_good, value.values()))


def _are_indices(value: Any) -> bool:
    return _is_list_of(_is_index)(value) or _is_table_of(_is_list_of(_is_index))(value)


def _are_names(value: Any) -> bool:
    return _is_text(value) or _is_list_of(_is_text)(value)


_NAMES = (_are_names, "a name or a list of names")
_INDICES = (_are_indices, "a list of rows, or one for each module")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: value == 0 or _is_rank(value), f"a whole number up to {_MOST_RANK}"),
    "lora_alpha": (_is_number, "a number"),
    "alpha_pattern": (_is_table_of(_is_number), "numbers by names"),
    "target_modules": _NAMES,
    "modules_to_save": _NAMES,
    "target_parameters": _NAMES,
    "feedforward_modules": _NAMES,
    "trainable_token_indices": _INDICES,
    "token_indices": _INDICES,
}


def _numbers(value: Any) -> Iterator[float]:
    """Yield all fractional numbers in a value."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
