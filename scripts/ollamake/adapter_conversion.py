"""A LoRA adapter -> a GGUF whose update llama.cpp adds to the base's weights while it runs, and the proof that it is the same.

llama.cpp's convert_lora_to_gguf.py takes lora_alpha for the whole adapter and lets llama.cpp divide it by each weight's rank;
it knows no rsLoRA, no alpha_pattern and no weight of an adapter. So it is given an adapter whose lora_alpha says the scale that
training used, under the names that the base stores, in float32: most tensors keep their bits, and those of another scale
than most have theirs multiplied into B, rounded once.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ollamake import converter_process
from ollamake.adapter_gguf import AdapterGguf, update_norm
from ollamake.errors import OllamakeError
from ollamake.gguf_conversion import run_converter_process
from ollamake.merge_arithmetic import TORCH_DTYPES
from ollamake.weight_file import WeightFile, read_entries

LORA_CONVERTER = "convert_lora_to_gguf.py"
_CLOSE = 1e-6
"""How far the update in the GGUF may be from the adapter's, by its norm: float32 has 6e-8, and its errors average out."""


@dataclass(frozen=True)
class Update:
    """scale * b @ a on one weight of the base, in float32 as it was trained; a [rank, in], b [out, rank]."""

    name: str
    """The weight's name as the base stores it."""
    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def alpha(self) -> float:
        """The lora_alpha that gives this scale where it is divided by the rank."""
        return self.scale * self.a.shape[0]


def updates_of(plan: Mapping[str, Any]) -> list[Update]:
    """Read the updates of a plan's one adapter; of what adapter_serving.require_servable has let through."""
    file = WeightFile(read_entries(Path(plan["adapters"][0]["path"])))

    def read(name: str) -> torch.Tensor:
        entry = file.entries[name]
        data = torch.frombuffer(bytearray(file.read(name, 0, entry.end - entry.begin)), dtype=TORCH_DTYPES[entry.dtype])
        return data.reshape(entry.shape).to(torch.float32)

    return [
        Update(tensor["name"], read(edit["a"]), read(edit["b"]), edit["scale"] * edit["weight"])
        for shard in plan["shards"]
        for tensor in shard["tensors"]
        for edit in tensor["edits"]
    ]


def convert_adapter(converter: Path, updates: list[Update], base: Path, name: str, output: Path) -> None:
    """Run llama.cpp's convert_lora_to_gguf.py and write ``output``, in float32.

    ``converter`` is the convert_hf_to_gguf.py beside it, ``base`` a folder with the base's config.json, ``name`` becomes
    general.name. Raises OllamakeError with the converter's own word for what it does not know.
    """
    program = converter.with_name(LORA_CONVERTER)
    if not program.is_file():
        raise OllamakeError(
            f"{converter.parent} has no {LORA_CONVERTER}: this llama.cpp is too old to convert adapters. Name a newer source tree"
            " in tools.llama_cpp, or null for the pinned one."
        )
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        # The converter takes general.name from the folder's.
        adapter = Path(folder) / name
        adapter.mkdir()
        alpha, tensors = _of_one_alpha(updates)
        save_file(tensors, adapter / "adapter_model.safetensors")
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": alpha}), "utf-8")
        arguments = [str(program), str(adapter), "--base", str(base.resolve()), "--outfile", str(output.resolve())]
        arguments += ["--outtype", "f32"]
        run_converter_process(Path(converter_process.__file__), arguments, output, f"the adapter of {name}")


def _of_one_alpha(updates: list[Update]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the lora_alpha that most updates have, and the tensors by peft's names with B scaled where it is another."""
    # llama.cpp reads it as float32, in which alphas of one scale are equal.
    alphas = Counter(float(np.float32(update.alpha)) for update in updates if update.alpha)
    # An alpha of 0 it takes for no scale at all: such an update has a B of 0 instead.
    alpha, _ = next(iter(alphas.most_common(1)), (1.0, 0))
    tensors = {}
    for update in updates:
        module = f"base_model.model.{update.name.removesuffix('.weight')}"
        same = float(np.float32(update.alpha)) == alpha
        b = update.b if same else (update.b.double() * (update.alpha / alpha)).float()
        tensors |= {f"{module}.lora_A.weight": update.a.contiguous(), f"{module}.lora_B.weight": b.contiguous()}
    return alpha, tensors


def require_same_update(updates: list[Update], converted: AdapterGguf, path: Path) -> None:
    """Raise OllamakeError unless the whole update in a GGUF is the adapter's: as many weights, and the same norm.

    The Frobenius norm of all updates is what no permutation, split or transposition of the converter's changes; a scale, a
    lost or a doubled weight does.
    """
    wanted = update_norm((update.a.numpy(), update.b.numpy(), update.scale) for update in updates)
    if len(updates) == len(converted.pairs) and math.isclose(wanted, converted.norm, rel_tol=_CLOSE):
        return
    raise OllamakeError(
        f"{path} is not the adapter: expected {len(updates)} weights with an update of norm {wanted:.9g}, llama.cpp's converter"
        f" wrote {len(converted.pairs)} of norm {converted.norm:.9g}. Set `serve: merged`."
    )
