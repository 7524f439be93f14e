"""What a merge did, summed up: for each tensor and layer how large the update is and how much of it was stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LOW_SURVIVAL = 0.95
"""Below this part of the update a tensor is warned of."""
_BETTER = {"BF16": "float16", "F16": "float32"}
"""Stored dtype -> the value of merge.dtype that keeps more of a small update."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
_NAMED = 4


def merge_report(plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report of a merge from its plan and the records of its shards.

    ``tensors``: name -> the statistics of its record (norms are Frobenius norms), stored dtype and shard. ``layers``: number
    or "other" -> relative norm of all updates of the layer and the smallest survival. ``totals``, ``inputs`` and ``outputs``
    (with sha256), and ``warnings``: sentences.
    """
    stored = {
        tensor["name"]: (tensor["stored"], shard["file"]) for shard in plan["shards"] for tensor in shard["tensors"]
    }
    tensors = {
        name: {**statistics, "stored": stored[name][0], "shard": stored[name][1]}
        for record in records
        for name, statistics in record["tensors"].items()
    }
    inputs = {
        entry["path"]: {"size": entry["size"], "sha256": entry["sha256"]}
        for record in records
        for entry in (record["base"], *record["others"], *record["adapters"])
    }
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for name, statistics in tensors.items():
        layers.setdefault(layer_of(name), []).append(statistics)
    return {
        "dtype": plan["dtype"],
        "adapters": [{"path": adapter["path"], "weight": adapter["weight"]} for adapter in plan["adapters"]],
        "config_changes": plan["config"],
        "totals": {
            "tensors": len(stored),
            "edited": len(tensors),
            **_summed(tensors.values()),
            "largest_delta": max((s["largest_delta"] for s in tensors.values()), default=0.0),
            "largest_delta_in": max(tensors, key=lambda name: tensors[name]["largest_delta"], default=None),
        },
        "layers": {layer: _summed(layers[layer]) for layer in sorted(layers, key=_in_order)},
        "tensors": tensors,
        "inputs": inputs,
        "outputs": {record["output"]["file"]: record["output"] for record in records},
        "warnings": _warnings(plan, tensors),
    }


def layer_of(name: str) -> str:
    """Return the number of the layer that a tensor belongs to, or "other"."""
    found = _LAYER.search(name)
    return found[1] if found else "other"


def projection_of(name: str) -> str:
    """Return the last part of a module's name: q_proj, down_proj, experts' included."""
    parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
    return parts[-1]


def _summed(statistics: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return relative norm and survival of several updates taken as one, and the smallest survival among them."""
    delta = base = kept = 0.0
    survivals = []
    for one in statistics:
        square = one["delta_norm"] ** 2
        delta += square
        if one["relative_norm"]:
            base += square / one["relative_norm"] ** 2
        if one["survival"] is not None:
            kept += one["survival"] * square
            survivals.append(one["survival"])
    return {
        "relative_norm": (delta / base) ** 0.5 if base else None,
        "survival": kept / delta if delta else None,
        "smallest_survival": min(survivals, default=None),
    }


def _warnings(plan: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    warnings = []
    if plan["adapters"] and tensors and all(one["delta_norm"] == 0 for one in tensors.values()):
        warnings.append(
            "the adapter changes nothing: every update is zero. Was the training finished, and is this its last checkpoint?"
        )
    else:
        zero = sorted(name for name, one in tensors.items() if one["delta_norm"] == 0)
        if zero:
            warnings.append(f"{len(zero)} of {len(tensors)} updates are zero: {_some(zero)}.")
    lost = sorted(
        (name for name, one in tensors.items() if one["survival"] is not None and one["survival"] < LOW_SURVIVAL),
        key=lambda name: tensors[name]["survival"],
    )
    if lost:
        worst = tensors[lost[0]]
        cure = _BETTER.get(worst["stored"])
        warnings.append(
            f"of {len(lost)} of {len(tensors)} updates less than {LOW_SURVIVAL:.0%} is stored (least:"
            f" {worst['survival']:.1%} of {lost[0]} in {worst['stored']}), since they are small against the weights' own"
            " rounding." + (f" Set `merge: {{dtype: {cure}}}` to keep them." if cure else "")
        )
    return warnings


def _in_order(layer: str) -> tuple[bool, int]:
    return (True, 0) if layer == "other" else (False, int(layer))


def _some(names: list[str]) -> str:
    more = f" ... and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
