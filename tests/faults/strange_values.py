"""Bytes and values that nobody expects: files in which a few places differ, and JSON in which anything may be anything."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    31,
    32,
    33,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def _edited(content: bytes, edits: list[tuple[int, int, int, bytes]]) -> bytes:
    data = bytearray(content)
    for kind, place, number, piece in edits:
        at = place % (len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << number % 8
        elif kind == 1:
            data[at:at] = piece
        elif kind == 2:
            del data[at : at + number % 40]
        elif kind == 3:
            data[at : at + 8] = NUMBERS[number % len(NUMBERS)].to_bytes(8, "little")
        elif kind == 4:
            data[at : at + 4] = (NUMBERS[number % len(NUMBERS)] & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 5:
            data[at:at] = data[place % (at + 1) : at]
        else:
            del data[at:]
    return bytes(data)


def changed(*originals: bytes) -> SearchStrategy[bytes]:
    """Return files in which a few places differ from one of the originals."""
    edit = st.tuples(st.integers(0, 6), st.integers(0, 1 << 16), st.integers(0, 1 << 16), st.binary(max_size=12))
    return st.builds(_edited, st.sampled_from(originals), st.lists(edit, max_size=6))


_STRANGE = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "__metadata__", "F32", "\ud800", "\u202e", "a" * 5000, "../x", "x\0"]), st.just([]), st.just({}),
)  # fmt: skip
VALUES = st.recursive(
    _STRANGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def with_strange_places(value: Any) -> SearchStrategy[Any]:
    """Return values like ``value``, in which anything may be something else, or missing."""
    if isinstance(value, dict):
        same = st.fixed_dictionaries({}, optional={key: with_strange_places(inner) for key, inner in value.items()})
    elif isinstance(value, list):
        same = st.tuples(*map(with_strange_places, value)).map(list)
    else:
        same = st.just(value)
    return st.one_of(st.just(value), same, VALUES)
