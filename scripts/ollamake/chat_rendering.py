"""Conversations with answers as the text that training saw: rendered by the tokenizer's chat template."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from jinja2 import TemplateError

from ollamake.chat_files import ChatLine, read_chat
from ollamake.conversations import Conversation
from ollamake.errors import OllamakeError
from ollamake.jinja_rendering import bounded, render_unbounded

CONVERSATIONS_AT_ONCE = 64
"""Rendered in one process, which ends if the template does not."""
_CHARACTERS_AT_ONCE = 1 << 20

_Rendered = tuple[list[str], tuple[int, str] | None]


def fixed_date(date_format: str) -> str:
    """Return the date that templates are told: always the same, so that a text is the same tomorrow."""
    return datetime.datetime(2025, 1, 1).strftime(date_format)


def rendered_chat(path: Path, key: str, chat_template: str, bos_token: str, eos_token: str) -> Iterator[list[str]]:
    """Yield the conversations of a file as text, a list at a time, each without a prompt for another answer.

    Raises OllamakeError naming ``key``, file and line for what is not of the form, or what the chat template refuses.
    """
    lines = read_chat(path, key)
    while batch := _batch(lines):
        conversations = [Conversation(f"{path}:{line.line}", line.messages) for line in batch]
        try:
            texts, fault = bounded(_render, chat_template, conversations, bos_token, eos_token)
        except TemplateError as error:
            raise OllamakeError(
                f"{key}: {path}:{batch[0].line}-{batch[-1].line}: the chat template cannot render these conversations:"
                f" {error}."
            ) from error
        if fault is not None:
            place, message = fault
            raise OllamakeError(
                f"{key}: {conversations[place].name}: the chat template refuses this conversation: {message}. Change it to the"
                " roles and their order that the model was trained on."
            )
        yield texts


def _batch(lines: Iterator[ChatLine]) -> list[ChatLine]:
    batch: list[ChatLine] = []
    characters = 0
    for line in islice(lines, CONVERSATIONS_AT_ONCE):
        batch.append(line)
        characters += sum(map(len, line.contents()))
        if characters >= _CHARACTERS_AT_ONCE:
            break
    return batch


def _render(chat_template: str, conversations: Sequence[Conversation], bos_token: str, eos_token: str) -> _Rendered:
    """Return the texts, or the number of the first conversation that is refused and why."""
    texts: list[str] = []
    for place, conversation in enumerate(conversations):
        try:
            texts.append(
                render_unbounded(
                    chat_template, conversation, bos_token, eos_token, clock=fixed_date, add_generation_prompt=False
                )
            )
        except TemplateError as error:
            return texts, (place, str(error))
    return texts, None
