"""Checks a merged checkpoint before it is converted: everything the plan and the manifest name is there, whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.proven_inputs import Recorded
from ollamake.record_seal import read_record

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_model_files(manifest: Path) -> dict[str, Any]:
    """Return what model_files.json says of the small files beside it, once each of them has the sha256 that stands there."""
    record: dict[str, Any] = read_record(manifest)
    folder = manifest.parent
    changed = [
        name
        for name, expected in record["files"].items()
        if not (folder / name).is_file() or sha256_of(folder / name) != expected["sha256"]
    ]
    if changed:
        raise DamagedFile(
            folder, f"{', '.join(changed)} missing or changed since these files were written there", [manifest]
        )
    return record


def recorded_shards(folder: Path, records: Iterable[Path]) -> list[Recorded]:
    """Return the merged shards in a folder with the sha256 that the records of their merges have."""
    written = (read_record(record)["output"] for record in records)
    return [Recorded.by(folder / output["file"], output) for output in written]


def require_whole(manifest: Path, plan: dict[str, Any]) -> int:
    """Raise OllamakeError unless every planned shard and every file of ``manifest`` (model_files.json) is as written.

    Small files are compared by sha256, shards by the bytes that their tensors need. Returns the bytes of all tensors.
    """
    folder = manifest.parent
    read_model_files(manifest)
    total = 0
    for shard in plan["shards"]:
        path = folder / shard["file"]
        needed = sum(_tensor_bytes(tensor) for tensor in shard["tensors"])
        if not path.is_file() or path.stat().st_size < needed:
            raise OllamakeError(
                f"{path} is missing or shorter than its tensors ({needed} bytes)."
                " Delete it and run again; only that shard is merged anew."
            )
        total += needed
    return total


def _tensor_bytes(tensor: dict[str, Any]) -> int:
    count = _BYTES.get(tensor["stored"], 1)
    for dimension in tensor["shape"]:
        count *= dimension
    return count
