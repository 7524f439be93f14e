"""The adapters of a model, as the configuration names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.source_files import normal_path


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's folder and the weight with which its update is added."""

    path: str
    weight: float


def adapters_of(filled: Mapping[str, Any], key: str) -> tuple[WeightedAdapter, ...]:
    """Return the adapters of a model, from either of the two ways to name them."""
    if filled["adapter"] and filled["adapters"]:
        raise OllamakeError(f"{key}: has both adapter and adapters. Name one in `adapter`, or several in `adapters`.")
    if filled["adapter"]:
        return (WeightedAdapter(normal_path(filled["adapter"]), 1.0),)
    adapters = tuple(
        WeightedAdapter(normal_path(one["path"]), float(one.get("weight", 1.0))) for one in filled["adapters"] or ()
    )
    if odd := [one for one in adapters if not math.isfinite(one.weight) or one.weight == 0]:
        raise OllamakeError(
            f"{key}.adapters: the weight of {odd[0].path} is {odd[0].weight}; expected a number other than zero."
        )
    twice = sorted({one.path for one in adapters if [other.path for other in adapters].count(one.path) > 1})
    if twice:
        raise OllamakeError(
            f"{key}.adapters: {', '.join(twice)} stands there twice. Name it once, with the sum of weights."
        )
    return adapters
