"""Large tables of cases: every run of the tests tries a few of them, campaigns the others."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def one_in(count: int, cases: Iterable[str]) -> list[Any]:
    """Return all cases for parametrize, of which one in ``count``, and at least one, is tried by every run."""
    names = list(cases)
    return these(random.Random(10).sample(names, -(-len(names) // count)), names)


def these(chosen: Collection[str], cases: Iterable[str]) -> list[Any]:
    """Return all cases for parametrize, of which the chosen ones are tried by every run."""
    return [pytest.param(name, marks=[] if name in chosen else pytest.mark.campaign) for name in cases]
