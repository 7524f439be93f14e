"""Carries out the edits that a merge plan names for one tensor, a band of rows at a time, in float32.

Several adapters are added with their weights: W + sum of weight * (what the adapter alone makes of W - W). For plain LoRA
that is the weighted sum of the updates; one adapter of weight 1 is taken as it is, without the detour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ollamake.errors import OllamakeError
from ollamake.merge_arithmetic import TORCH_DTYPES, Scratch, dequantized, with_magnitudes
from ollamake.safetensors_header import BITS
from ollamake.weight_file import WeightFile, read_entries

_ORDER = ("replace", "module", "low_rank", "add", "rows")
"""What an adapter does to one tensor, in the order of its forward pass: the saved base first, trained tokens last."""

Planned = Mapping[str, Any]


class TensorReader:
    """Reads whole tensors or rows of them from weight files as torch tensors, whatever the files' format."""

    def __init__(self) -> None:
        self._files: dict[str, WeightFile] = {}

    def tensor(self, path: str, name: str) -> torch.Tensor:
        """Return a tensor in its own dtype."""
        entry = self._file(path).entries[name]
        return as_tensor(self._file(path).read(name, 0, entry.size), entry.dtype).view(entry.shape)

    def rows(self, path: str, name: str, first: int, last: int) -> torch.Tensor:
        """Return rows [first, last) of a matrix, those of them that it has, in float32."""
        entry = self._file(path).entries[name]
        columns = entry.shape[-1] if entry.shape else 1
        width = columns * BITS[entry.dtype] // 8
        data = self._file(path).read(name, min(first * width, entry.size), min(last * width, entry.size))
        return as_tensor(data, entry.dtype).view(-1, columns).to(torch.float32)

    def _file(self, path: str) -> WeightFile:
        if path not in self._files:
            self._files[path] = WeightFile(read_entries(Path(path)))
        return self._files[path]


class TensorEdit:
    """The edits of one planned tensor; those that go through peft's layer need all its rows in one band."""

    def __init__(
        self, planned: Planned, base: str, adapters: list[Planned], reader: TensorReader, scratch: Scratch
    ) -> None:
        self._planned, self._base, self._adapters = planned, base, adapters
        self._reader, self._scratch = reader, scratch
        self._groups = [
            sorted((e for e in planned["edits"] if e["adapter"] == number), key=lambda e: _ORDER.index(e["kind"]))
            for number in range(len(adapters))
        ]
        self._groups = [group for group in self._groups if group]
        experts = [edit["experts"] for edit in planned["edits"] if "experts" in edit]
        self.unbroken = planned["shape"][1] if experts else None
        """Rows of one expert where the tensor holds several."""
        self._matrices: dict[str, torch.Tensor] = {}
        self._halves: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self._scales: torch.Tensor | None = None
        self._require_twins()

    def wide(self, band: torch.Tensor, first: int) -> torch.Tensor:
        """Return a band of the base [rows, columns] in float32, dequantized if it is float8."""
        scale = self._planned.get("scale")
        if scale is None:
            return self._scratch.of("base", band.shape).copy_(band)
        if self._scales is None:
            self._scales = self._reader.tensor(scale["file"], scale["name"])
        return dequantized(band, self._scales, first, (scale["block"][0], scale["block"][1]))

    def edited(self, base: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a band of the edited tensor in float32, and the update that was added if it is nothing but that.

        ``base`` [rows, columns] is the band before, from row ``first``.
        """
        if not self._groups:
            return base, None
        if len(self._groups) == 1 and self._groups[0][0]["weight"] == 1:
            (group,) = self._groups
            if len(group) == 1 and group[0]["kind"] == "low_rank" and "magnitude" not in group[0]:
                update = self._update(group[0], base, first)
                return torch.add(base, update, out=self._scratch.of("sum", base.shape)), update
            return self._by_one_adapter(group, base, first), None
        total = base.clone()
        for group in self._groups:
            change = self._by_one_adapter(group, base, first) - base
            total.add_(change, alpha=group[0]["weight"])
        return total, None

    def _by_one_adapter(self, group: list[Planned], base: torch.Tensor, first: int) -> torch.Tensor:
        value = base
        for edit in group:
            steps: dict[str, Callable[[Planned, torch.Tensor, int], torch.Tensor]] = {
                "replace": self._replaced,
                "module": self._by_peft,
                "low_rank": self._updated,
                "add": self._added,
                "rows": self._with_rows,
            }
            value = steps[edit["kind"]](edit, value, first)
        return value

    def _replaced(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        return self._reader.rows(self._path(edit), edit["source"], first, first + value.shape[0])

    def _update(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        """Return left @ right for a band, in memory that the next band takes."""
        expert, row = self._place(edit, first)
        left, right = self._left_and_right(edit, expert)
        return torch.mm(left[row : row + value.shape[0]], right, out=self._scratch.of("delta", value.shape))

    def _updated(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        total = self._update(edit, value, first).add(value)
        if "magnitude" in edit:
            _, row = self._place(edit, first)
            magnitudes = self._matrix(edit, edit["magnitude"]).view(-1)
            return with_magnitudes(total, magnitudes[self._offset(edit) + row :][: value.shape[0]])
        return total

    def _place(self, edit: Planned, first: int) -> tuple[int | None, int]:
        """Return (expert, row of it) that a row of the tensor is, expert None where there is one matrix."""
        if "experts" in edit and self.unbroken:
            return first // self.unbroken, first % self.unbroken
        return None, first

    def _left_and_right(self, edit: Planned, expert: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [rows, rank], scaled, and [rank, columns] of an update, of one expert where there are several."""
        known = self._halves.get(id(edit))
        wanted = -1 if expert is None else expert
        if known is not None and known[0] == wanted:
            return known[1], known[2]
        a, b = self._matrix(edit, edit["a"]), self._matrix(edit, edit["b"])
        count = edit.get("experts") or (edit["expert"][1] if "expert" in edit else 1)
        if count > 1:
            # peft's ParamWrapper: lora_A is [experts * rank, in] expert by expert, lora_B [out, rank * experts] rank by rank.
            number = edit["expert"][0] if "expert" in edit else wanted
            a = a.view(count, -1, a.shape[-1])[number]
            b = b.view(b.shape[0], -1, count)[:, :, number]
        if "rows" in edit:
            b = b[edit["rows"][0] : edit["rows"][1]]
        left, right = (a.t(), b.t()) if edit["transposed"] else (b, a)
        left = left.contiguous().mul(edit["scale"])
        self._halves[id(edit)] = (wanted, left, right.contiguous())
        return left, self._halves[id(edit)][2]

    def _added(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        source = self._matrix(edit, edit["source"]).view(-1, value.shape[-1])[first : first + value.shape[0]]
        return value + source * edit["scale"]

    def _with_rows(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        trained = self._matrix(edit, edit["source"])
        here = [(n, row - first) for n, row in enumerate(edit["indices"]) if first <= row < first + value.shape[0]]
        if not here:
            return value
        value = value.clone()
        for number, row in here:
            value[row] = trained[number]
        return value

    def _by_peft(self, edit: Planned, value: torch.Tensor, first: int) -> torch.Tensor:
        # Imported here: peft takes seconds to import, and plain LoRA does without it.
        from ollamake.peft_module import merge_module

        shape = tuple(self._planned["shape"])
        files = self._planned.get("files", {})
        parameters = {
            key: value.view(shape)
            if key == edit["parameter"]
            else self._reader.tensor(files.get(stored, self._base), stored).to(torch.float32)
            for key, stored in edit["parameters"].items()
        }
        adapter = self._adapters[edit["adapter"]]
        tensors = {name: self._reader.tensor(adapter["path"], name) for name in edit["tensors"]}
        shapes = {module: tuple(one) for module, one in adapter["shapes"].items()}
        merged = merge_module(adapter["config"], edit["module"], edit["layer"], parameters, tensors, shapes)
        return merged[edit["parameter"]].to(torch.float32).reshape(value.shape)

    def _matrix(self, edit: Planned, name: str) -> torch.Tensor:
        """Return an adapter's tensor in float32; kept, since every band needs it."""
        key = f"{edit['adapter']} {name}"
        if key not in self._matrices:
            self._matrices[key] = self._reader.tensor(self._path(edit), name).to(torch.float32)
        return self._matrices[key]

    def _path(self, edit: Planned) -> str:
        return str(self._adapters[edit["adapter"]]["path"])

    @staticmethod
    def _offset(edit: Planned) -> int:
        return int(edit["rows"][0]) if "rows" in edit else 0

    def _require_twins(self) -> None:
        """Raise OllamakeError if tensors that are copies of one another differ: only one of the two is used."""
        for edit in self._planned["edits"]:
            path = self._path(edit)
            for one, other in edit.get("twins", ()):
                first, second = self._reader.tensor(path, one), self._reader.tensor(path, other)
                if not any(f.shape == second.shape and torch.equal(f, second) for f in (first, first.t())):
                    raise OllamakeError(
                        f"{path}: {one} and {other} were trained as one (a tied embedding and head, or two copies) and"
                        " should be equal, but differ. If embedding and head were trained apart, set ensure_weight_tying"
                        " to false in adapter_config.json."
                    )


def as_tensor(data: bytearray | memoryview, dtype: str) -> torch.Tensor:
    """Return bytes as a flat tensor of a dtype of safetensors, without copying them."""
    if len(data) == 0:
        return torch.empty(0, dtype=TORCH_DTYPES[dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype])
