"""Whether a RAG application's file still says what was written there, as something that a job can depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.rag_update import read_marker, values_found


def undone(record_file: Path, marker_file: Path, spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what has undone the last update, to be part of what the next one is asked for; None if nothing ever has.

    As long as the file says what it should it is what the last update was asked for, which stands in its record: an update
    that is asked for once is made once. What is found to differ is counted, so that the same edit, made again after it was
    put right, is something new.
    """
    try:
        last = json.loads(json.loads(record_file.read_text(encoding="utf-8"))["spec"])["undone"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # The update has not been made yet, or its record is gone: it is made anyway.
    try:
        found = {
            path: one.source for path, one in values_found(read_marker(marker_file), spec).items() if not one.as_wanted
        }
    except OllamakeError as error:
        found = {"error": str(error)}
    if not found:
        return last
    return {"times": (last["times"] if last else 0) + 1, "found": found}
