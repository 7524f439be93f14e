"""The Modelfile: for people, and for `ollama create -f` by hand.

Grammar and its gaps: Ollama's parser/parser.go. Inside triple quotes nothing is escaped; a line that ends in three quotes
ends the text; characters that Go calls not printable are dropped silently, the ideographic space U+3000 among them.
Registration therefore goes through the API, which takes any text exactly, and the Modelfile says where it falls short.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ollamake.create_request import CreateRequest

log = logging.getLogger("ollamake")

LONGEST_TEXT = 100_000
"""Characters: Ollama's parser needs seconds beyond this, since its time grows with the square of the length."""

_HEADER = """\
# {name}, written by ollamake, which registers it through Ollama's API.
# By hand: ollama create {name} -f Modelfile
"""


def modelfile_text(request: CreateRequest, gguf: PurePosixPath, adapter: PurePosixPath | None = None) -> str:
    """Return the Modelfile; ``gguf`` and ``adapter`` are the paths of the GGUFs relative to it.

    What the grammar cannot hold is left out, with a comment that says so, and logged: a Modelfile never says something
    other than what is registered.
    """
    lines = [_HEADER.format(name=request.name), f"FROM {gguf}", *([f"ADAPTER {adapter}"] if adapter else [])]
    for command, text in (("SYSTEM", request.system), ("TEMPLATE", request.template)):
        lines += _origin(request, command.lower())
        if text:
            lines.append(_text_command(command, text))
    for name, value in sorted(request.parameters.items()):
        lines += _origin(request, name)
        lines += [_parameter(name, item) for item in (value if isinstance(value, list) else [value])]
    lines += [_text_command("LICENSE", text) for text in request.license]
    return "\n".join(lines) + "\n"


def _origin(request: CreateRequest, name: str) -> list[str]:
    """Say in a comment where a template or parameter comes from."""
    if name not in request.origins:
        return []
    return ["", f"# {name}: {request.origins[name]}"]


def _text_command(command: str, text: str) -> str:
    gaps = list(_not_representable(text))
    if not gaps:
        return f'{command} """{text}"""'
    reason = "; ".join(gaps)
    log.warning("the Modelfile cannot hold %s (%s); it is registered exactly all the same", command, reason)
    return f"# {command} is left out here: {reason}. It is registered exactly, through the API."


def _parameter(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return f"PARAMETER {name} {str(value).lower() if isinstance(value, bool) else value}"
    gaps = list(_not_representable(value))
    if gaps:
        return f"# PARAMETER {name} is left out here: {'; '.join(gaps)}. It is registered exactly, through the API."
    return f'PARAMETER {name} """{value}"""'


def _not_representable(text: str) -> Iterator[str]:
    """Say what of a text a Modelfile would change."""
    dropped = sorted(
        {character for character in text if not _is_go_printable(character) and character not in " \t\n\r"}
    )
    if dropped:
        shown = ", ".join(f"U+{ord(character):04X}" for character in dropped[:5])
        yield f"a Modelfile loses the character{'s' if len(dropped) > 1 else ''} {shown}"
    if any(line.rstrip().endswith('"""') for line in text.replace("\r", "\n").split("\n")):
        yield 'a line of it ends in """'
    if len(text) > LONGEST_TEXT:
        yield f"it has {len(text)} characters, and Ollama's parser takes too long beyond {LONGEST_TEXT}"


def _is_go_printable(character: str) -> bool:
    """Go's unicode.IsPrint: letters, marks, numbers, punctuation, symbols and the ASCII space."""
    return character == " " or unicodedata.category(character)[0] in "LMNPS"
