"""The files that a build has read, each with the content that was recorded when it was read, or pinned before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ollamake.file_digest import tree_sha256
from ollamake.hub_content import Content, content_of
from ollamake.pinned_sources import pinned_sources


@dataclass(frozen=True)
class ReadFile:
    """A file of a base or adapter, or a program that was built."""

    path: Path
    content: Content
    made_here: bool
    """Whether a job makes or fetches it; else it is the user's, and only the user can say which content is meant."""


def users_files(results: Path) -> Iterator[ReadFile]:
    """Yield what a model's records say was read of base and adapters and seems untouched, by size and time.

    One that was changed, moved or removed is what the next run notices by itself.
    """
    records = sorted(results.glob("merge_records/*.json")) + sorted(results.glob("gguf/*.adapter.json"))
    entries = [
        entry
        for record in records
        if (said := _read(record))
        for entry in (said.get("base"), *said.get("adapters", []), *said.get("others", []))
    ]
    for entry in [*entries, *_read(results / "inputs.json").get("read", [])]:
        if isinstance(entry, dict) and entry.keys() >= {"path", "size", "mtime_ns", "sha256"}:
            path = Path(entry["path"])
            if path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (entry["size"], entry["mtime_ns"]):
                yield from _known(path, entry)


def fetched_files(results: Path) -> Iterator[ReadFile]:
    """Yield the files from the hub that a model has pinned and that are here."""
    pins = results / "sources.json"
    if not pins.exists():
        return
    for source in pinned_sources(pins).values():
        for name, entry in source.content.items():
            yield from _known(Path(source.folder, name), entry)


def built_programs(folder: Path) -> Iterator[ReadFile]:
    """Yield the programs of llama.cpp that were built, by the records beside them."""
    for record in sorted(folder.glob("*/bin/*.json")):
        program, said = record.with_suffix(""), _read(record)
        if program.exists():
            entry = {"size": program.stat().st_size, "sha256": said.get("sha256")}
            yield from (replace(file, made_here=True) for file in _known(program, entry))


def changed_sources(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the records of fetched source trees of llama.cpp that are not as they were unpacked, and what is wrong."""
    for record in sorted(folder.glob("*/source.json")):
        known, source = _read(record).get("tree_sha256"), record.with_suffix("")
        if known and source.is_dir() and (found := tree_sha256(source)) != known:
            yield record, f"the files in {source} are others than when they were unpacked: {found}, not {known}"


def _known(path: Path, entry: Any) -> Iterator[ReadFile]:
    try:
        content = content_of(entry)
    except (ValueError, TypeError, KeyError):
        return
    if path.exists():
        yield ReadFile(path, content, made_here=path.parts[0] == "resources")


def _read(record: Path) -> dict[str, Any]:
    """Return a record as it stands; an empty one for what is not there or damaged, which is told of the record itself."""
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
