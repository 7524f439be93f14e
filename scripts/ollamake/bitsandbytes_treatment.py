"""How each tensor of a checkpoint is stored in a bitsandbytes checkpoint, as it is planned once and kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Treatment:
    """How a tensor of a checkpoint is stored: quantized or not, after it was turned into ``dtype``."""

    dtype: torch.dtype
    quantized: bool = False
    transposed: bool = False
    """Whether its layer keeps inputs in rows (Conv1D), which bitsandbytes does not."""


@dataclass(frozen=True)
class TreatedCheckpoint:
    """Tensor -> its treatment. ``left_out``: those of the checkpoint that the model has no place for, or has twice."""

    treatments: dict[str, Treatment]
    left_out: tuple[str, ...]
    kept_layers: tuple[str, ...]
    """Linear layers that are not quantized, by their names in the model."""
    kept_experts: tuple[str, ...]
    """Tensors of experts, which transformers stacks in parameters that are no linear layers and so does not quantize."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it; from_json turns it back."""
        return {
            "treatments": {
                name: {
                    "dtype": str(one.dtype).removeprefix("torch."),
                    "quantized": one.quantized,
                    "transposed": one.transposed,
                }
                for name, one in self.treatments.items()
            },
            "left_out": list(self.left_out),
            "kept_layers": list(self.kept_layers),
            "kept_experts": list(self.kept_experts),
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> TreatedCheckpoint:
        """Return what as_json wrote; other keys of it are not looked at."""
        treatments = {
            name: Treatment(getattr(torch, one["dtype"]), one["quantized"], one["transposed"])
            for name, one in written["treatments"].items()
        }
        lists = (tuple(written[key]) for key in ("left_out", "kept_layers", "kept_experts"))
        return cls(treatments, *lists)
