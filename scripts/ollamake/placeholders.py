"""The paths that the examples leave open: a configuration that still has some is refused with all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError

PLACEHOLDER = "/CHANGE/ME"
"""What such a path begins with; config/examples/*.yaml."""


def placeholders(config: Mapping[str, Any]) -> list[str]:
    """Return ``key: value`` of each value of a configuration that is a placeholder, in its order."""
    return [f"{key}: {value}" for key, value in _texts(config, "") if value.startswith(PLACEHOLDER)]


def require_no_placeholders(config: Mapping[str, Any], first: str = "") -> None:
    """Raise OllamakeError with every placeholder that is left, after ``first``: what else is not there."""
    left = placeholders(config)
    if not left:
        return
    found = "\n    ".join(left)
    raise OllamakeError(
        f"{first}{chr(10) if first else ''}The configuration has placeholders of an example:\n    {found}\n"
        "Put paths of your own in their place, and leave out what you do not need (imatrix, quality, answers, rag)."
    )


def is_missing(file: str) -> bool:
    """Whether a file is not there. A placeholder is not missed before something is built: what fits can be planned with it."""
    return not file.startswith(PLACEHOLDER) and not Path(file).expanduser().is_file()


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{key}[{number}]")
    elif isinstance(value, str):
        yield key, value
