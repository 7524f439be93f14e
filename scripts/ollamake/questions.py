"""The user's own questions to a model, and whether an answer is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError

_FORM = (
    'expected one JSON object a line, such as {"messages": [{"role": "user", "content": "..."}], "expect": "..."}; `expect` is a'
    ' text that the answer contains, {"regex": "..."} or {"any_of": ["...", "..."]}; {"question": "..."} stands for one message'
)


@dataclass(frozen=True)
class Question:
    """A conversation to be answered, and what the answer must have."""

    messages: tuple[dict[str, str], ...]
    any_of: tuple[str, ...]
    """Texts of which the answer contains at least one."""
    regex: str | None = None
    """A pattern that is found in the answer, instead."""

    def is_answered_by(self, answer: str) -> bool:
        """Whether an answer is right."""
        if self.regex is not None:
            return re.search(self.regex, answer) is not None
        return any(text in answer for text in self.any_of)


def read_questions(path: Path, key: str = "questions") -> list[Question]:
    """Read a JSONL file of questions. Raises OllamakeError naming ``key``, the file and the line of the first fault."""
    try:
        # Only line feeds end a line of JSONL: a text may have U+2028 in it.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OllamakeError(f"{key}: {path} cannot be read as UTF-8 text: {error}") from error
    questions = [
        _question(line, f"{key}: {path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not questions:
        raise OllamakeError(f"{key}: {path} has no questions; {_FORM}.")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OllamakeError(f"{where}: {error}; {_FORM}.") from error
    if not isinstance(value, dict):
        raise OllamakeError(f"{where}: found {line.strip()[:60]}; {_FORM}.")
    messages = value.get("messages")
    if isinstance(value.get("question"), str):
        messages = [{"role": "user", "content": value["question"]}]
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise OllamakeError(f"{where}: `messages` is missing or not a list of role and content; {_FORM}.")
    any_of, regex = _expectation(value.get("expect"), where)
    return Question(tuple(messages), any_of, regex)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _expectation(expect: Any, where: str) -> tuple[tuple[str, ...], str | None]:
    match expect:
        case str() if expect:
            return (expect,), None
        case {"text": str(text)} if len(expect) == 1 and text:
            return (text,), None
        case {"any_of": [*texts]} if (
            len(expect) == 1 and texts and all(isinstance(text, str) and text for text in texts)
        ):
            return tuple(texts), None
        case {"regex": str(pattern)} if len(expect) == 1 and pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                raise OllamakeError(
                    f"{where}: the pattern {pattern!r} is not a regular expression: {error}."
                ) from error
            return (), pattern
    raise OllamakeError(f"{where}: `expect` is {expect!r}; {_FORM}.")
