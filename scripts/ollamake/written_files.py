"""The files of a model that a build has written, each with what says that it is still what was written.

A large file is known by a record: a shard by that of its merge, a GGUF by the JSON beside it. A record, and a text for people,
is known by its own last line. What was removed since, as intermediate files are, is no fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.hub_content import Content, content_of
from ollamake.record_seal import BROKEN, Seal, seal_of


@dataclass(frozen=True)
class KnownFile:
    """A file whose content is recorded."""

    path: Path
    content: Content
    targets: tuple[Path, ...]
    """What has to be removed for it to be made again: itself, or the record of the job that wrote it."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written."""

    path: Path
    what: str
    targets: tuple[Path, ...]


def known_files(results: Path) -> Iterator[KnownFile]:
    """Yield the files below a model's results that its records know and that are there."""
    for path, content, targets in _recorded(results):
        if path.exists():
            yield KnownFile(path, content, targets or (path,))


def sealed_files(results: Path, known: set[Path]) -> tuple[list[Path], list[Path], list[Damage]]:
    """Return the files below a model's results that seal themselves, those of which nothing is known, and the damaged.

    ``known``: those that a record knows. Empty files say only that something is done.
    """
    whole, unknown, damaged = [], [], []
    for path in sorted(results.rglob("*")):
        if path in known or not path.is_file() or path.name.startswith(".") or not path.stat().st_size:
            continue
        content = path.read_bytes() if path.stat().st_size <= _LARGEST_TEXT else b""
        seal = seal_of(content, path.suffix)
        if path.suffix == ".json" and not _is_json(content):
            damaged.append(Damage(path, "it is no JSON any more", (path,)))
        elif seal is Seal.BROKEN:
            damaged.append(Damage(path, BROKEN, (path,)))
        else:
            (whole if seal is Seal.WHOLE else unknown).append(path)
    return whole, unknown, damaged


_LARGEST_TEXT = 1 << 30
"""Bytes: no record or page is larger."""

_Recorded = tuple[Path, Content, tuple[Path, ...]]


def _recorded(results: Path) -> Iterator[_Recorded]:
    """Yield (file, content, what to remove where that is not the file itself)."""
    for record in sorted(results.glob("merge_records/*.json")):
        if (output := _read(record).get("output")) is not None:
            yield from _entry(results / "merged" / str(output.get("file")), output)
    for manifest in (results / "merged/model_files.json", *sorted(results.glob("bitsandbytes/*.json"))):
        folder = manifest.parent if manifest.parent.name == "merged" else manifest.with_suffix("")
        for name, entry in _read(manifest).get("files", {}).items():
            yield from _entry(folder / name, entry, () if name.endswith(".safetensors") else (manifest,))
    for record in sorted(results.glob("gguf/*.json")):
        said = _read(record)
        yield from _entry(record.parent / said.get("file", f"{record.stem}.gguf"), said)
    for record in sorted(results.glob("quality/*.json")):
        said = _read(record)
        text = record.with_suffix(".txt")
        if "purpose" in said and text.exists():
            yield from _entry(text, {"size": text.stat().st_size, **said})
    for record in sorted(results.glob("serve/*/serving.json")):
        for name, digest in _read(record).get("files", {}).items():
            file = record.parent / name
            if file.exists():
                yield from _entry(file, {"size": file.stat().st_size, "sha256": digest}, (record,))


def _entry(path: Path, entry: Any, targets: tuple[Path, ...] = ()) -> Iterator[_Recorded]:
    """Yield what an entry of a record says; nothing of one that says no digest, as a damaged record may."""
    try:
        yield path, content_of(entry), targets
    except (ValueError, TypeError, KeyError):
        return


def _read(record: Path) -> dict[str, Any]:
    """Return a record as it stands; an empty one for what cannot be read, which is told of the record itself."""
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True
