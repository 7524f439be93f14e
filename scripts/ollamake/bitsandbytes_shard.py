"""Quantizes one shard of a merged checkpoint: a tensor is read in bands, and each band is written before the next is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ollamake.atomic_write import temporary_beside
from ollamake.bitsandbytes_layout import Entry, PlacedTensors, int8_entries, nf4_entries
from ollamake.bitsandbytes_quantization import BAND, quant_state_name, quantize_int8, quantize_nf4
from ollamake.bitsandbytes_treatment import TreatedCheckpoint, Treatment
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.free_disk import require_free_disk
from ollamake.progress import progress_bar
from ollamake.safetensors_header import TensorEntry, read_header, tensor_bytes
from ollamake.tensor_edit import as_tensor
from ollamake.weight_file import WeightFile

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


def quantize_shard(source: Path, treated: TreatedCheckpoint, precision: str, output: Path) -> dict[str, Any]:
    """Write the shard ``source`` quantized to ``output`` and return what was written.

    ``precision``: nf4 or int8. Returned are file, size and sha256, ``parameters`` (elements before they are quantized),
    ``tensors`` (name -> dtype and shape), ``quantized`` (names of the weights that are), and ``left_out``. Raises OllamakeError
    for a damaged shard, for values that cannot be stored, and when the disk has no room.
    """
    torch.set_num_threads(1)
    header = read_header(source)
    unknown = [entry.name for entry in header.tensors if entry.name not in {*treated.treatments, *treated.left_out}]
    if unknown:
        raise OllamakeError(
            f"{source} has tensors that the merge plan does not have: {', '.join(unknown[:5])}. Delete it and run again;"
            " it is merged anew."
        )
    kept = [entry for entry in header.tensors if entry.name in treated.treatments]
    stored = [tensor for entry in kept for tensor in _stored(entry, treated.treatments[entry.name], precision)]
    nf4 = [entry.name for entry in kept if treated.treatments[entry.name].quantized and precision == "nf4"]
    needed = sum(tensor_bytes(dtype, shape) for _, dtype, shape in stored)
    require_free_disk(output.parent, needed, f"the {precision} shard {output.name}")
    file, late = WeightFile(header), {}
    with (
        progress_bar(sum(entry.size for entry in kept), f"quantizing {source.name} to {precision}") as progress,
        temporary_beside(output) as temporary,
    ):
        with temporary.open("wb") as target:
            placed = PlacedTensors(target, stored, [quant_state_name(name) for name in nf4])
            write = _writer(placed)
            for entry in kept:
                treatment = treated.treatments[entry.name]
                bands = _Bands(file, entry, treatment, precision, progress.update)
                if not treatment.quantized:
                    _copy(entry.name, bands, treatment.dtype, write)
                elif precision == "nf4":
                    name, text = quantize_nf4(entry.name, bands.shape, bands, write)
                    late[name] = text
                else:
                    quantize_int8(entry.name, bands, write)
            written = placed.finish(late)
        size, digest = temporary.stat().st_size, sha256_of(temporary)
    return {
        "file": output.name,
        "size": size,
        "sha256": digest,
        "parameters": sum(math.prod(entry.shape) for entry in kept),
        "tensors": {name: {"dtype": dtype, "shape": list(shape)} for name, dtype, shape in written},
        "quantized": sorted(entry.name for entry in kept if treated.treatments[entry.name].quantized),
        "left_out": sorted(entry.name for entry in header.tensors if entry.name in treated.left_out),
    }


def require_merged(shard: Path) -> None:
    """Raise OllamakeError if a merged shard is not there: it goes, unless keep.merged is true."""
    if not shard.exists():
        raise OllamakeError(
            f"{shard} is not here. With keep.merged: false it is made again for a stage of the workflow, not for every single"
            " file: run `snakemake --cores 1 all`, or `bitsandbytes`."
        )


def versions() -> dict[str, str]:
    """Return the versions of the libraries on which the bytes of a checkpoint depend."""
    return {name: version(name) for name in ("bitsandbytes", "torch", "transformers")}


def _stored(entry: TensorEntry, treatment: Treatment, precision: str) -> list[Entry]:
    """Return the tensors that are written for one of the shard, but for `quant_state`."""
    if not treatment.quantized:
        return [(entry.name, _NAMES.get(treatment.dtype, entry.dtype), entry.shape)]
    if precision == "nf4":
        return nf4_entries(entry.name, math.prod(entry.shape))
    return int8_entries(entry.name, entry.shape[::-1] if treatment.transposed else entry.shape)


class _Bands:
    """A tensor in bands of its treatment's dtype: flat, or of whole rows where it becomes LLM.int8()."""

    def __init__(
        self,
        file: WeightFile,
        entry: TensorEntry,
        treatment: Treatment,
        precision: str,
        advance: Callable[[int], object],
    ) -> None:
        self._file, self._entry, self._treatment, self._advance = file, entry, treatment, advance
        self._by_rows = treatment.quantized and precision == "int8"
        self.shape = entry.shape[::-1] if treatment.transposed else entry.shape

    def __iter__(self) -> Iterator[torch.Tensor]:
        columns = self.shape[-1] if self._by_rows else 1
        step = max(1, BAND // columns) * columns
        count = math.prod(self.shape)
        turned = self._turned() if self._treatment.transposed else None
        for first in range(0, count, step):
            last = min(first + step, count)
            band = self._read(first, last) if turned is None else turned[first:last]
            yield band.view(-1, columns) if self._by_rows else band

    def _read(self, first: int, last: int) -> torch.Tensor:
        """Return elements [first, last) in the order of the file."""
        width = self._entry.size // max(1, math.prod(self._entry.shape))
        data = self._file.read(self._entry.name, first * width, last * width)
        band = as_tensor(data, self._entry.dtype).to(self._treatment.dtype)
        self._advance(len(data))
        self._file.release(self._entry.name, first * width)
        return band

    def _turned(self) -> torch.Tensor:
        """Return all elements, columns first; such models are small."""
        whole = self._read(0, math.prod(self._entry.shape)).view(self._entry.shape)
        return whole.T.contiguous().view(-1)


def _copy(name: str, bands: _Bands, dtype: torch.dtype, write: Callable[[str, int, torch.Tensor], None]) -> None:
    offset = 0
    for band in bands:
        if dtype == torch.float16 and torch.isinf(band).any():
            raise OllamakeError(
                f"{name} has values that float16 does not hold (up to 65504), in which the model is loaded by its config.json."
                " Set merge.dtype: bfloat16."
            )
        write(name, offset, band)
        offset += band.numel() * band.element_size()


def _writer(placed: PlacedTensors) -> Callable[[str, int, torch.Tensor], None]:
    def write(name: str, first: int, tensor: torch.Tensor) -> None:
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        placed.write(name, first, memoryview(flat.numpy()).cast("B"))

    return write
