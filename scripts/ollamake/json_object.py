"""A file that must hold a JSON object, as config.json and its like do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raises OllamakeError, naming it, if it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OllamakeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise OllamakeError(f"{path}: expected a JSON object.")
    return value
