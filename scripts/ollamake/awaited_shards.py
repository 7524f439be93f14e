"""Shards that are still to come: headers.json beside them has their headers, so that all can be planned meanwhile."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.json_object import parse_json

HEADERS = "headers.json"
"""Shard -> {"size": bytes of the whole file, "header": its JSON header as it stands there}."""


def awaited_header(path: Path) -> tuple[int, bytes] | None:
    """Return the size and the header of a shard as headers.json beside it has them; None if it does not.

    Raises OllamakeError for a headers.json that is none.
    """
    entry = _entries(path.parent).get(path.name)
    if entry is None:
        return None
    try:
        size, header = entry["size"], entry["header"].encode("utf-8")
        if not isinstance(size, int):
            raise ValueError(f"{size!r} is not a size")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise _damaged(path.parent / HEADERS, error) from error
    return size, header


def is_awaited(path: Path) -> bool:
    """Whether headers.json beside it names a shard."""
    return path.name in _entries(path.parent)


def _entries(folder: Path) -> dict[str, Any]:
    path = folder / HEADERS
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, _mtime_ns: int, _size: int) -> dict[str, Any]:
    try:
        entries = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(entries, dict):
        raise _damaged(path, ValueError("it is not a JSON object"))
    return entries


def _damaged(path: Path, error: Exception) -> OllamakeError:
    return OllamakeError(f"{path} is damaged ({error}). Delete it: it is fetched again.")
