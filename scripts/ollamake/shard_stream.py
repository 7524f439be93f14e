"""Merges one shard: the base is read once in file order, the result is written once, nothing else is held.

Tensors that keep their dtype and meet no edit are copied as bytes without passing through torch. The sha256 of what is
read and of what is written is computed on the way, so neither file is read again for it.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from ollamake.atomic_write import open_atomically
from ollamake.errors import OllamakeError
from ollamake.file_digest import CHUNK, sha256_of
from ollamake.free_disk import require_free_disk
from ollamake.merge_arithmetic import TORCH_DTYPES, MergeStatistics, bands, merge_band, stored_as
from ollamake.progress import progress_bar
from ollamake.safetensors_header import TensorEntry, header_bytes, read_header, tensor_bytes


class _HashedWriter:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        return self._digest.hexdigest()


class _HashedSource:
    """A file mapped read-only, its bytes hashed in the order in which they are asked for, which must be the file's."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._digest = hashlib.sha256()
        self._position = 0
        self._advance = advance

    def read(self, begin: int, end: int) -> memoryview:
        assert begin == self._position, "the base is read once, in order"
        view = memoryview(self._map)[begin:end]
        self._digest.update(view)
        self._position = end
        self._advance(end - begin)
        return view

    def release(self) -> None:
        """Let the pages read so far go, so that a mapped file does not count as memory of this process."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def sha256(self) -> str:
        return self._digest.hexdigest()


def merge_shard(plan: dict[str, Any], shard_name: str, output: Path, threads: int) -> dict[str, Any]:
    """Write the merged shard ``shard_name`` of a merge plan to ``output`` and return its record.

    The record has path, size, mtime_ns and sha256 of the files read, size and sha256 of the output, and statistics of
    each edited tensor. The same inputs give the same bytes for any number of threads. Raises OllamakeError if the base
    changed since it was planned, for values that cannot be stored, and when the disk has no room.
    """
    shard = next((shard for shard in plan["shards"] if shard["file"] == shard_name), None)
    if shard is None:
        raise OllamakeError(f"the merge plan has no shard {shard_name}; it has {[s['file'] for s in plan['shards']]}")
    torch.set_num_threads(threads)
    base = Path(shard["base"])
    before = base.stat()
    header = read_header(base)
    _require_as_planned(base, shard["tensors"], header.tensors)
    size = sum(tensor_bytes(tensor["stored"], tensor["shape"]) for tensor in shard["tensors"])
    require_free_disk(output.parent, size, f"the merged shard {shard_name}")
    adapter = _AdapterReader(plan["adapter"]["path"] if plan["adapter"] else None)
    statistics: dict[str, Any] = {}
    with progress_bar(before.st_size, f"merging {shard_name}") as progress, open_atomically(output) as file:
        source, target = _HashedSource(base, progress.update), _HashedWriter(file)
        source.read(0, header.data_start)
        target.write(header_bytes([(t["name"], t["stored"], tuple(t["shape"])) for t in shard["tensors"]]))
        for planned, entry in zip(shard["tensors"], header.tensors, strict=True):
            merged = _write_tensor(planned, entry, header.data_start, source, target, adapter)
            if merged is not None:
                statistics[planned["name"]] = merged
            source.release()
    return {
        "base": _file_entry(base, before, source.sha256()),
        "adapter": adapter.entry(),
        "output": {"file": shard_name, "size": target.size, "sha256": target.sha256()},
        "tensors": statistics,
    }


def _write_tensor(
    planned: dict[str, Any],
    entry: TensorEntry,
    start: int,
    source: _HashedSource,
    target: _HashedWriter,
    adapter: _AdapterReader,
) -> dict[str, Any] | None:
    """Write one tensor; return its statistics if it was edited."""
    edit, begin, end = planned["edit"], start + entry.begin, start + entry.end
    if edit is None and planned["stored"] == planned["dtype"]:
        for first in range(begin, end, CHUNK):
            target.write(source.read(first, min(end, first + CHUNK)))
            source.release()
        return None
    replacement = adapter.tensor(edit["source"]) if edit and edit["kind"] == "replace" else None
    a, b = (adapter.tensor(edit["a"]), adapter.tensor(edit["b"])) if edit and edit["kind"] == "lora" else (None, None)
    statistics = MergeStatistics()
    columns = entry.shape[-1] if entry.shape else 1
    rows = entry.size // max(1, columns * TORCH_DTYPES[entry.dtype].itemsize)
    width = columns * TORCH_DTYPES[entry.dtype].itemsize
    for first, last in bands(rows, columns):
        band = _as_tensor(source.read(begin + first * width, begin + last * width), entry.dtype).view(-1, columns)
        if a is not None and b is not None:
            rows_of_b = b[first:last].to(torch.float32)
            result = merge_band(entry.name, band, a, rows_of_b, edit["scale"], planned["stored"], statistics)
        elif replacement is not None:
            trained = replacement.reshape(-1, columns)[first:last]
            result = _replace_band(entry.name, band, trained, planned["stored"], statistics)
        else:
            result = stored_as(entry.name, band.to(torch.float32), planned["stored"])
        target.write(_as_bytes(result))
    return None if edit is None else {"kind": edit["kind"], **statistics.as_json()}


def _replace_band(
    name: str, base: torch.Tensor, trained: torch.Tensor, stored: str, statistics: MergeStatistics
) -> torch.Tensor:
    """Take the trained values in place of the base's; their difference is the update that the statistics speak of."""
    wide, base_wide = trained.to(torch.float32), base.to(torch.float32)
    result = stored_as(name, wide, stored)
    delta = wide - base_wide
    statistics.base_square += float(base_wide.to(torch.float64).square().sum())
    statistics.delta_square += float(delta.to(torch.float64).square().sum())
    moved = result.to(torch.float64) - base_wide.to(torch.float64)
    statistics.stored_dot_delta += float((moved * delta).sum())
    statistics.largest_delta = max(statistics.largest_delta, float(delta.abs().max()) if delta.numel() else 0.0)
    return result


class _AdapterReader:
    """Reads single tensors of the adapter; lora_A is widened once, as every band needs all of it."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._file = safe_open(path, framework="pt") if path else None

    def tensor(self, name: str) -> torch.Tensor:
        assert self._file is not None
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor.to(torch.float32) if ".lora_A" in name else tensor

    def entry(self) -> dict[str, Any] | None:
        if self._path is None:
            return None
        return _file_entry(self._path, self._path.stat(), sha256_of(self._path))


def _file_entry(path: Path, status: Any, digest: str) -> dict[str, Any]:
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}


def _require_as_planned(base: Path, planned: list[dict[str, Any]], found: tuple[TensorEntry, ...]) -> None:
    wanted = [(tensor["name"], tensor["dtype"], tuple(tensor["shape"])) for tensor in planned]
    if wanted != [(tensor.name, tensor.dtype, tensor.shape) for tensor in found]:
        raise OllamakeError(
            f"{base} has other tensors than when the merge was planned. Run again; the plan is made anew"
            " (`--forcerun plan_merge` if it is not)."
        )


def _as_tensor(view: memoryview, dtype: str) -> torch.Tensor:
    """Return a view of mapped bytes as a flat tensor. It is only read, whatever torch warns of read-only memory."""
    if len(view) == 0:
        return torch.empty(0, dtype=TORCH_DTYPES[dtype])
    # frombuffer wants writable memory; a copy of one band is the price of a mapping that cannot be written by mistake.
    return torch.frombuffer(bytearray(view), dtype=TORCH_DTYPES[dtype])


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")
