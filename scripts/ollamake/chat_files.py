"""The user's conversations with answers, one JSON object a line, read a line at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.conversations import Message, assistant, user
from ollamake.errors import OllamakeError
from ollamake.text_files import open_source, refuse_bytes

LONGEST_LINE = 8 << 20
"""Bytes: more is no conversation, but a file of another form, which would be read into memory as a whole."""

_FORM = (
    'expected one JSON object a line, such as {"messages": [{"role": "user", "content": "..."}, {"role": "assistant",'
    ' "content": "..."}]} or {"question": "...", "answer": "..."}'
)
_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class ChatLine:
    """A conversation, and the number of its line from 1."""

    line: int
    messages: tuple[Message, ...]

    def contents(self) -> list[str]:
        """Return what user and assistant say."""
        return [str(message["content"]) for message in self.messages if message["role"] not in _SYSTEM_ROLES]


def read_chat(path: Path, key: str, max_bytes: int | None = None) -> Iterator[ChatLine]:
    """Yield the conversations of a file; lines that begin behind its first ``max_bytes`` are not read.

    Each has an answer of the assistant. Keys beside ``messages`` are not looked at; those of a message beside role and content
    are kept for the chat template. Raises OllamakeError naming ``key``, the file and the line of the first fault.
    """
    place, found, complete = 0, False, True
    with open_source(path, key) as file:
        number = 0
        while True:
            if max_bytes is not None and place >= max_bytes:
                complete = False
                break
            raw = file.readline(LONGEST_LINE + 1)
            if not raw:
                break
            number += 1
            where = f"{key}: {path}:{number}"
            if b"\x00" in raw:
                refuse_bytes(path, key, place + raw.find(b"\x00"))
            if len(raw) > LONGEST_LINE:
                raise OllamakeError(
                    f"{where}: the line is longer than {LONGEST_LINE >> 20} MiB, beginning with {_shown(raw)}; {_FORM}."
                )
            bare = raw.removeprefix(codecs.BOM_UTF8) if place == 0 else raw
            try:
                text = bare.decode("utf-8")
            except UnicodeDecodeError as error:
                refuse_bytes(path, key, place + len(raw) - len(bare) + error.start)
            place += len(raw)
            if text.strip():
                found = True
                yield ChatLine(number, _messages(text, where))
    if not found and complete:
        raise OllamakeError(f"{key}: {path} has no conversations; {_FORM}.")


def _messages(text: str, where: str) -> tuple[Message, ...]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OllamakeError(f"{where}: not JSON ({error}): found {_shown(text)}; {_FORM}.") from error
    match value:
        case {"messages": [_, *_] as messages}:
            pass
        case {"question": str(question), "answer": str(answer)} if question.strip() and answer.strip():
            messages = [user(question), assistant(answer)]
        case dict():
            keys = ", ".join(map(repr, value)) or "no keys"
            raise OllamakeError(
                f"{where}: found an object with {keys[:80]}, but neither `messages`, a list that is not empty, nor"
                f" `question` and `answer`, texts that are not empty; {_FORM}."
            )
        case _:
            raise OllamakeError(f"{where}: found {_shown(text)}; {_FORM}.")
    for count, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            shown = _shown(json.dumps(message, ensure_ascii=False))
            raise OllamakeError(f"{where}: message {count} is {shown}, without texts as role and content; {_FORM}.")
        _refuse_unwritable(message, f"{where}: message {count}")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise OllamakeError(
            f"{where}: there is no answer: no message of the role `assistant` that is not empty (roles: {roles[:80]}). Only"
            " conversations with answers can be used."
        )
    return tuple(messages)


def _refuse_unwritable(message: dict[str, Any], where: str) -> None:
    """Raise OllamakeError for what JSON's escapes can say and no UTF-8 text file can hold."""
    text = json.dumps(message, ensure_ascii=False)
    surrogate = next((one for one in text if "\ud800" <= one <= "\udfff"), None)
    if surrogate is not None:
        raise OllamakeError(
            f"{where} has half of a character: the escape \\u{ord(surrogate):04x} alone. Mend the text."
        )
    if "\\u0000" in text and any("\x00" in value for value in message.values() if isinstance(value, str)):
        raise OllamakeError(f"{where} has the character of the number zero (\\u0000). Take it out.")


def _shown(text: str | bytes) -> str:
    start = text[:240].decode("utf-8", "replace") if isinstance(text, bytes) else text
    start = start.strip()
    return start[:60] + ("..." if len(start) > 60 else "")
