"""The last line of a record, and of a text written beside one: the sha256 of all before it, so that a flipped bit shows.

A file without that line was written by an earlier version, or by somebody else: of it nothing is known, and it is read as it is.
"""

from __future__ import annotations

import json
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any

from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError

BROKEN = "it has other bytes than its last line, the seal, says"
_KEY = "seal"
_DIGITS = 64
_MARKUP = ("\n<!-- seal: sha256 ", " -->\n")
_FRAMES = {".json": (f'\n  "{_KEY}": "', '"\n}\n'), ".html": _MARKUP, ".md": _MARKUP, ".svg": _MARKUP}
"""What stands before and behind the digest, by the file's suffix; elsewhere it is a comment of YAML and Modelfiles."""
_COMMENT = ("\n# seal: sha256 ", "\n")
_FLIPPED = 2
"""Bytes of a frame that may differ for the line to be taken for a damaged seal, not for none."""


class Seal(Enum):
    """What the last line of a file says of the rest."""

    WHOLE = "whole"
    NONE = "not sealed"
    BROKEN = "damaged"


def sealed_json(value: Any) -> str:
    """Return ``value`` as JSON that is the same text for the same value; an object with its seal as the last key."""
    if not isinstance(value, dict):
        return _json(value) + "\n"
    text = _json({key: one for key, one in value.items() if key != _KEY})
    return _sealed(text[:-2] + "," if len(text) > 2 else "{", ".json")


def sealed_text(text: str, suffix: str) -> str:
    """Return a text with a comment that seals it, as files of ``suffix`` (.md, .html, .svg, else #) have comments."""
    return _sealed(text, suffix)


def seal_of(content: bytes, suffix: str) -> Seal:
    """Return what a file's content is by its seal."""
    before, behind = (part.encode() for part in _FRAMES.get(suffix, _COMMENT))
    at = len(content) - len(before) - _DIGITS - len(behind)
    if at < 0:
        return Seal.NONE
    body, digest = content[:at], content[at + len(before) : len(content) - len(behind)]
    frame = before + behind
    found = content[at : at + len(before)] + content[len(content) - len(behind) :]
    differing = sum(one != other for one, other in zip(found, frame, strict=True))
    if differing > _FLIPPED:
        return Seal.NONE
    return Seal.BROKEN if differing or sha256(body).hexdigest().encode() != digest else Seal.WHOLE


def read_record(path: Path) -> Any:
    """Return what a JSON record says, without its seal.

    Raises OllamakeError if the file cannot be read, DamagedFile if it is not what was written.
    """
    content = _content(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"it is no JSON any more ({error})") from error
    if seal_of(content, ".json") is Seal.BROKEN:
        raise DamagedFile(path, BROKEN)
    if isinstance(value, dict):
        value.pop(_KEY, None)
    return value


def read_optional(path: Path | None) -> Any:
    """Return what read_record does, None for a record that is not asked for."""
    return None if path is None else read_record(path)


def read_sealed_text(path: Path) -> str:
    """Return a text without its seal. Raises OllamakeError if it cannot be read, DamagedFile if it is not what was written."""
    content = _content(path)
    seal = seal_of(content, path.suffix)
    if seal is Seal.BROKEN:
        raise DamagedFile(path, BROKEN)
    text = content.decode("utf-8")
    return text.rpartition(_FRAMES.get(path.suffix, _COMMENT)[0])[0] if seal is Seal.WHOLE else text


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OllamakeError(f"{path} cannot be read: {error}.") from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _sealed(body: str, suffix: str) -> str:
    before, behind = _FRAMES.get(suffix, _COMMENT)
    return body + before + sha256(body.encode()).hexdigest() + behind
