"""Merges one shard: the base is read once in file order, the result is written once, nothing else is held.

Three threads work side by side: one reads and hashes the base, one does the arithmetic, one hashes and writes the result.
(A fourth hashes the adapters, which is soon done.)
Tensors that keep their dtype and meet no edit go from the first to the last as the bytes they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch

from ollamake.atomic_write import FlushBehind, open_atomically
from ollamake.damage import replaced_source
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.free_disk import require_free_disk
from ollamake.merge_arithmetic import MergeStatistics, Scratch, bands, stored_as
from ollamake.overlapped_io import ReadAhead, WriteBehind
from ollamake.progress import progress_bar
from ollamake.safetensors_header import SafetensorsHeader, TensorEntry, header_bytes, tensor_bytes
from ollamake.tensor_edit import TensorEdit, TensorReader, as_tensor
from ollamake.weight_file import WeightFile, is_pickled, read_entries

CHUNK = 4 << 20
"""Bytes of an untouched tensor that are handed on at once."""

Planned = dict[str, Any]
Bytes = bytes | bytearray | memoryview


def merge_shard(
    plan: Planned, shard_name: str, output: Path, threads: int, known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Write the merged shard ``shard_name`` of a merge plan to ``output`` and return its record.

    The record has path, size, mtime_ns and sha256 of the files read, size and sha256 of the output, and statistics of
    each edited tensor. The same inputs give the same bytes for any number of threads. ``known``: path -> sha256 of files
    that have been read before, or are pinned. Raises OllamakeError if the base changed since it was planned, if a file has
    other bytes than ``known`` says, for values that cannot be stored, and when the disk has no room.
    """
    shard = next((shard for shard in plan["shards"] if shard["file"] == shard_name), None)
    if shard is None:
        raise OllamakeError(f"the merge plan has no shard {shard_name}; it has {[s['file'] for s in plan['shards']]}")
    torch.set_num_threads(max(1, threads - 2))  # two more read, hash and write
    base = Path(shard["base"])
    before = base.stat()
    header = read_entries(base)
    outputs = _outputs_of(base, shard["tensors"], header.tensors)
    size = sum(tensor_bytes(tensor["stored"], tensor["shape"]) for tensor in shard["tensors"])
    require_free_disk(output.parent, size, f"the merged shard {shard_name}")
    paths = [Path(adapter["path"]) for adapter in plan["adapters"]]
    beside = [*_others(shard, base), *paths]
    reader, scratch = TensorReader(), Scratch()
    statistics: dict[str, Any] = {}
    with (
        ThreadPoolExecutor(1, "hash") as hashing,
        progress_bar(before.st_size, f"merging {shard_name}") as progress,
        open_atomically(output) as file,
    ):
        digests = {path: hashing.submit(sha256_of, path) for path in beside}
        source, target = _Source(header, outputs, progress.update), _Target(file)
        with WriteBehind(target.write) as behind, ReadAhead(source.portions()) as ahead, torch.inference_mode():
            behind.write(header_bytes([(t["name"], t["stored"], tuple(t["shape"])) for t in shard["tensors"]]))
            for entry in header.tensors:
                own = islice(ahead, source.count[entry.name])
                for planned in outputs[entry.name]:
                    edit = TensorEdit(planned, str(base), plan["adapters"], reader, scratch)
                    found = _write_tensor(planned, entry, edit, own, behind.write, str(base), reader, scratch)
                    if planned["edits"]:
                        kinds = dict.fromkeys(one["kind"] for one in planned["edits"])
                        statistics[planned["name"]] = {"kind": " + ".join(kinds), **found.as_json()}
                for _ in own:  # what no output needed is read all the same, for the sha256
                    pass
        read = {
            "base": _file_entry(base, before, source.sha256()),
            "others": [_file_entry(path, path.stat(), digests[path].result()) for path in _others(shard, base)],
            "adapters": [_file_entry(path, path.stat(), digests[path].result()) for path in paths],
        }
        for entry in (read["base"], *read["others"], *read["adapters"]):
            _require_known(entry, known)
    return {
        **read,
        "output": {"file": shard_name, "size": target.size, "sha256": target.sha256()},
        "tensors": statistics,
    }


def _write_tensor(
    planned: Planned,
    entry: TensorEntry,
    edit: TensorEdit,
    chunks: Iterator[Bytes],
    write: Callable[[Bytes], object],
    base: str,
    reader: TensorReader,
    scratch: Scratch,
) -> MergeStatistics:
    """Write one planned tensor and return its statistics, which are zero where nothing was edited."""
    statistics = MergeStatistics()
    if _is_copied(planned):
        for chunk in chunks:
            write(chunk)
        return statistics
    columns = entry.shape[-1] if entry.shape else 1
    streamed = _is_streamed(planned, entry)
    for first, last in _bands_of(planned, entry):
        if streamed:
            band = as_tensor(next(chunks), entry.dtype).view(-1, columns)
            wide = edit.wide(band, first)
        else:
            wide = _rows_in_memory(reader, base, entry, planned, edit, first, last)
        value, update = edit.edited(wide, first)
        bound = statistics.add_update(wide, value, update, scratch) if planned["edits"] else None
        result = stored_as(planned["name"], value, planned["stored"], bound)
        if planned["edits"]:
            statistics.add_stored(wide, result, scratch)
        write(_as_bytes(result))
    return statistics


def _rows_in_memory(
    reader: TensorReader, base: str, entry: TensorEntry, planned: Planned, edit: TensorEdit, first: int, last: int
) -> torch.Tensor:
    """Return rows of the base out of turn, zeros for those that it does not have (a vocabulary that grew)."""
    if entry.dtype == "F8_E4M3":
        whole = reader.tensor(base, entry.name).view(-1, entry.shape[-1])
        return edit.wide(whole[first:last], first)
    columns = planned["shape"][-1]
    wide = torch.zeros(last - first, columns)
    if len(entry.shape) == 1:  # the bias of a head
        there = min(columns, entry.shape[0])
        wide[0, :there] = reader.rows(base, entry.name, 0, 1)[0, :there]
        return wide
    there = min(last, entry.shape[0])
    if first < there:
        wide[: there - first] = reader.rows(base, entry.name, first, there)
    return wide


def _is_copied(planned: Planned) -> bool:
    return not planned["edits"] and planned["stored"] == planned["dtype"] and planned["name"] == planned["source"]


def _is_streamed(planned: Planned, entry: TensorEntry) -> bool:
    """Whether a tensor is made while the base's passes; else its rows are read out of turn."""
    return bool(planned["name"] == planned["source"] and tuple(planned["shape"]) == entry.shape)


def _bands_of(planned: Planned, entry: TensorEntry) -> Iterator[tuple[int, int]]:
    shape = planned["shape"]
    columns = shape[-1] if shape else 1
    rows = 1
    for length in shape[:-1]:
        rows *= length
    if any(edit["kind"] == "module" for edit in planned["edits"]):
        yield 0, rows
        return
    several = any("experts" in edit for edit in planned["edits"])
    yield from bands(rows, columns, shape[1] if several else None)


class _Source:
    """The base's bytes in the portions in which they are used, hashed in the file's order."""

    def __init__(
        self, header: SafetensorsHeader, outputs: dict[str, list[Planned]], advance: Callable[[int], object]
    ) -> None:
        self._header, self._advance = header, advance
        self._digest = hashlib.sha256()
        self._portions = {entry.name: self._portions_of(entry, outputs[entry.name]) for entry in header.tensors}
        self.count = {name: len(portions) for name, portions in self._portions.items()}

    @staticmethod
    def _portions_of(entry: TensorEntry, outputs: list[Planned]) -> list[tuple[int, int]]:
        streamed = [planned for planned in outputs if _is_streamed(planned, entry) and not _is_copied(planned)]
        if streamed:
            width = entry.size // max(1, _rows_of(entry))
            return [(first * width, last * width) for first, last in _bands_of(streamed[0], entry)]
        return [(first, min(entry.size, first + CHUNK)) for first in range(0, entry.size, CHUNK)]

    def portions(self) -> Iterator[Bytes]:
        pickled = is_pickled(self._header.path)
        file = WeightFile(self._header)
        if not pickled:
            self._digest.update(file.head())
        for entry in self._header.tensors:
            for first, last in self._portions[entry.name]:
                data = file.read(entry.name, first, last)
                if not pickled:
                    self._digest.update(data)
                self._advance(last - first)
                yield data
                file.release(entry.name, first)
        if pickled:  # a .bin is not laid out in the order of its tensors
            self._sha256 = sha256_of(self._header.path)
        else:
            self._sha256 = self._digest.hexdigest()

    def sha256(self) -> str:
        return self._sha256


class _Target:
    """The file that is written, hashed by the thread that writes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._flush = FlushBehind(file)
        self.size = 0

    def write(self, data: Bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        self._flush.written(self.size)

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _outputs_of(base: Path, planned: list[Planned], found: tuple[TensorEntry, ...]) -> dict[str, list[Planned]]:
    """Return stored tensor of the base -> what is written from it. Raises OllamakeError unless they are as planned."""
    entries = {entry.name: entry for entry in found}
    outputs: dict[str, list[Planned]] = {entry.name: [] for entry in found}
    for tensor in planned:
        entry = entries.get(tensor["source"])
        if entry is None or (entry.dtype, list(entry.shape[1:])) != (tensor["dtype"], list(tensor["shape"][1:])):
            raise _changed(base)
        outputs[tensor["source"]].append(tensor)
    order = [tensor["source"] for tensor in planned]
    if list(dict.fromkeys(order)) != [entry.name for entry in found if outputs[entry.name]]:
        raise _changed(base)
    return outputs


def _changed(base: Path) -> OllamakeError:
    return OllamakeError(
        f"{base} has other tensors than when the merge was planned. Run again; the plan is made anew"
        " (`--forcerun plan_merge` if it is not)."
    )


def _rows_of(entry: TensorEntry) -> int:
    rows = 1
    for length in entry.shape[:-1]:
        rows *= length
    return rows


def _others(shard: Planned, base: Path) -> list[Path]:
    """Return the base's other shards that this one takes tensors from."""
    files = [tensor["scale"]["file"] for tensor in shard["tensors"] if "scale" in tensor]
    files += [file for tensor in shard["tensors"] for file in tensor.get("files", {}).values()]
    return [Path(file) for file in sorted(set(files) - {str(base)})]


def _file_entry(path: Path, status: Any, digest: str) -> dict[str, Any]:
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}


def _require_known(entry: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Raise OllamakeError before the shard is published if a file is another than its size and time say."""
    path = entry["path"]
    if entry["sha256"] != known.get(path, entry["sha256"]):
        raise replaced_source(path, known[path], entry["sha256"])


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()).cast("B")
