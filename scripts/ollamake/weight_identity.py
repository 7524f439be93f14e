"""Tells changed weights from touched ones, without hashing tens of GB each time the workflow looks.

The idea is that of git's index: a file whose size and modification time are those it had when it was read is taken to
be the same; where they differ, and the file is small enough to hash in seconds, its sha256 decides. Times are compared
for equality, not for order: an older adapter moved into place is as much a change as a newer one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ollamake.awaited_shards import awaited_header
from ollamake.file_digest import sha256_of

HASHED_AT_MOST = 2 << 30
"""Bytes: a touched file up to this size is hashed to see whether it changed (a second or two); a larger one is taken
as changed, so touching a 5 GB shard costs its merge."""

LARGEST_HEADER = 100 << 20
"""Bytes: the safetensors format's own bound on its header."""


def seen_files(records: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return what earlier merges read: path -> {identity, size, mtime_ns, sha256}, from their records.

    A record that is not readable counts as not there: the merge it belongs to will be done again and write it anew.
    """
    seen: dict[str, dict[str, Any]] = {}
    for record in records:
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            entries = [content["base"], *content["adapters"], *content["others"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for entry in entries:
            if isinstance(entry, dict) and entry.keys() >= {"path", "identity", "size", "mtime_ns", "sha256"}:
                seen[entry["path"]] = entry
    return seen


def identity_of(path: Path, seen: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a text that changes when, and only when, the file must be read again.

    It is the size and time at which the content was first seen. Raises FileNotFoundError.
    """
    status = path.stat()
    known = seen.get(str(path))
    if known is not None:
        untouched = (status.st_size, status.st_mtime_ns) == (known["size"], known["mtime_ns"])
        if untouched or _same_content(path, status.st_size, status.st_mtime_ns, known):
            return str(known["identity"])
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def _same_content(path: Path, size: int, mtime_ns: int, known: Mapping[str, Any]) -> bool:
    if size != known["size"] or size > HASHED_AT_MOST:
        return False
    return _sha256_at(path, size, mtime_ns) == known["sha256"]


@cache
def _sha256_at(path: Path, size: int, mtime_ns: int) -> str:
    """sha256, computed once a process however many jobs read the file (an adapter belongs to every shard's job)."""
    return sha256_of(path)


@cache
def header_digest(path: Path) -> str:
    """Return the sha256 of a safetensors file's header: names, dtypes, shapes and offsets of its tensors.

    Whatever the file holds, this returns: what is wrong with it is said by the job that reads it. Of a file that is still
    to come the header is read that headers.json beside it has. Raises FileNotFoundError where neither is there.
    """
    try:
        with path.open("rb") as file:
            length = file.read(8)
            header = file.read(min(int.from_bytes(length, "little"), LARGEST_HEADER))
    except FileNotFoundError:
        awaited = awaited_header(path)
        if awaited is None:
            raise
        header = awaited[1]
        length = len(header).to_bytes(8, "little")
    return hashlib.sha256(length + header).hexdigest()
