"""Whether a model is prompted in Ollama as its tokenizer's chat template prompts it: text and token ids, BOS included.

What is expected comes from transformers: apply_chat_template, as training uses it. What is found comes from what serves the
model, and its ids from there and from llama.cpp's tokenizer on the GGUF itself.
"""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from ollamake.conversations import CONVERSATIONS, Conversation
from ollamake.errors import OllamakeError
from ollamake.jinja_rendering import MAX_CHARACTERS, TemplateUnbounded, bounded

log = logging.getLogger("ollamake")

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None

_SECONDS_TO_EVALUATE = 30.0
"""How long a server may take in all to evaluate prompts for their tokens; a large model on a processor would need an hour.
After that llama.cpp's tokenizer alone says them, in no time."""

NO_SYSTEM_ROLE = (
    "the chat template has no system role, so the model was trained without one; the registered system prompt stands before"
    " the first question"
)

EQUAL, DIFFERS, DEVIATES, REFUSED, NOT_OFFERED = "equal", "differs", "deviates", "refused", "not offered"


@dataclass(frozen=True)
class Renderer:
    """What prompts the model when it is served."""

    name: str
    render: Callable[[Messages, Tools], str]
    """Messages and tools -> the prompt. Raises OllamakeError where it refuses."""
    count_and_ids: Callable[[str], tuple[list[int], int]] | None
    """A prompt -> the ids before its answer (without BOS, the answer's after them), and how many are evaluated."""


@dataclass
class PromptCheck:
    """One model's tokenizer against what serves it."""

    tokenizer: Any
    """transformers' tokenizer of the merged checkpoint, with its chat template."""
    renderer: Renderer
    gguf_ids: Callable[[str], list[int]]
    """A prompt -> its ids by llama.cpp on the GGUF, with the BOS that it puts before them."""
    adds_bos: bool
    system: str | None = None
    """The registered system prompt, which is put before a conversation without one."""
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Conversations of which is known why they differ -> the reason."""
    evaluated: int = 0
    """Prompts whose tokens the server itself has told."""
    _seconds: float = 0.0

    def run(self, conversations: Sequence[Conversation] = CONVERSATIONS) -> list[dict[str, str]]:
        """Return name, status and detail of each conversation."""
        return [{"name": conversation.name, **self._one(conversation)} for conversation in conversations]

    def _one(self, conversation: Conversation) -> dict[str, str]:
        messages = list(conversation.messages)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        tools = list(conversation.tools) if conversation.tools else None
        if tools and not self._takes_tools():
            return {"status": REFUSED, "detail": "the chat template has no tools"}
        try:
            expected = self._expected(messages, tools, conversation.continues)
        except TemplateError as error:
            if len(messages) > len(conversation.messages) and not tools and self._renders(conversation):
                return self._without_system_role(conversation)
            # What a chat template refuses (two users in a row, a system prompt) cannot have been trained either.
            return {"status": REFUSED, "detail": f"by the chat template: {error}"}
        try:
            # The conversations of a request are never sent without their system: an empty one would be replaced.
            found = self.renderer.render(list(conversation.messages), tools)
        except OllamakeError as error:
            if tools and "does not support tools" in str(error):
                return {
                    "status": NOT_OFFERED,
                    "detail": "tools are refused for this model, so no wrong prompt comes of them",
                }
            raise
        difference = self._difference(expected, found)
        if difference is None:
            return {"status": EQUAL, "detail": ""}
        if conversation.name in self.deviations:
            return {"status": DEVIATES, "detail": self.deviations[conversation.name]}
        if tools:
            # Ollama reads tools and calls and writes them anew, which nothing here can change.
            return {"status": DEVIATES, "detail": f"Ollama writes tools in its own way: {difference}"}
        return {"status": DIFFERS, "detail": difference}

    def _without_system_role(self, conversation: Conversation) -> dict[str, str]:
        """Compare with the system prompt in front of the first question, where a TEMPLATE puts it for want of a role."""
        first, *more = conversation.messages
        joined = [{**first, "content": f"{self.system}\n\n{first['content']}"}, *more]
        found = self.renderer.render(list(conversation.messages), None)
        difference = self._difference(self._expected(joined, None, conversation.continues), found)
        return {"status": DEVIATES if difference is None else DIFFERS, "detail": difference or NO_SYSTEM_ROLE}

    def _renders(self, conversation: Conversation) -> bool:
        """Whether the chat template takes a conversation as it is, without the registered system prompt."""
        try:
            self._expected(list(conversation.messages), None, conversation.continues)
        except TemplateError:
            return False
        return True

    def _takes_tools(self) -> bool:
        """Whether the chat template says something of tools: without, a prompt with tools is one without."""
        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else str(template)
        return "tools" in text

    def _expected(self, messages: Messages, tools: Tools, continues: bool) -> str:
        text: str = bounded(_applied, self.tokenizer, messages, tools, continues)
        return text

    def _difference(self, expected: str, found: str) -> str | None:
        """Return how the prompt found differs from the one expected, or None."""
        wanted = list(self.tokenizer(expected, add_special_tokens=False)["input_ids"])
        bos = self.tokenizer.bos_token or ""
        bare = expected.removeprefix(bos) if self.adds_bos and bos else expected
        if found != bare:
            return "the text:\n" + text_difference(bare, found)
        have = self.gguf_ids(found)
        if have != wanted and have[1:] == wanted:
            return (
                f"the GGUF's tokenizer puts {self._shown(have[:1])} before every prompt, which the chat template does not write."
                " If the model was trained without it, set add_bos_token to false in the tokenizer_config.json beside"
                " the chat template; if with it, the chat template lacks bos_token."
            )
        if have != wanted:
            return "the tokens by llama.cpp: " + self._ids_difference(wanted, have)
        if self.renderer.count_and_ids is None or self._seconds > _SECONDS_TO_EVALUATE:
            return None
        began = time.monotonic()
        ids, evaluated = self.renderer.count_and_ids(found)
        self._seconds += time.monotonic() - began
        self.evaluated += 1
        if evaluated != len(wanted):
            return (
                f"{self.renderer.name} evaluates {evaluated} tokens, the tokenizer gives {len(wanted)}"
                f" ({self._shown(wanted[:3])} ...)"
            )
        without_bos = wanted[1:] if self.adds_bos else wanted
        # The last may have joined with what was answered; that it is one token the number has shown.
        if ids and ids[: len(without_bos) - 1] != without_bos[:-1]:
            return f"the tokens by {self.renderer.name}: " + self._ids_difference(without_bos, ids[: len(without_bos)])
        return None

    def _ids_difference(self, wanted: list[int], have: list[int]) -> str:
        place = next(
            (n for n, (a, b) in enumerate(zip(wanted, have, strict=False)) if a != b), min(len(wanted), len(have))
        )
        return (
            f"{len(wanted)} expected, {len(have)} found; from number {place} on {self._shown(wanted[place : place + 4])} is"
            f" expected and {self._shown(have[place : place + 4])} found"
        )

    def _shown(self, ids: list[int]) -> str:
        return " ".join(f"{number}={self.tokenizer.convert_ids_to_tokens(number)!r}" for number in ids) or "nothing"


def _applied(tokenizer: Any, messages: Messages, tools: Tools, continues: bool) -> str:
    """Render as training does, by transformers, which bounds neither time nor memory. Raises TemplateError."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
    except (TemplateError, MemoryError):
        raise
    except Exception as error:  # a template may bring about any
        raise TemplateError(str(error)) from error
    if len(text) > MAX_CHARACTERS:
        raise TemplateUnbounded(f"the chat template writes more than {MAX_CHARACTERS} characters")
    return str(text)


def text_difference(expected: str, found: str) -> str:
    """Return two prompts as a diff of their lines, white space and control characters made visible."""
    lines = [[repr(line)[1:-1] for line in text.splitlines(keepends=True)] for text in (expected, found)]
    diff = list(difflib.unified_diff(*lines, "expected, by the tokenizer", "found", lineterm="", n=1))
    return "\n".join(f"    {line[:300]}" for line in diff[:40])


def stop_fault(end_of_turn: str | None, end_tokens: Mapping[str, int], stop: Sequence[str]) -> str | None:
    """Return why a model may not stop after its answer, or None.

    ``end_of_turn`` is the special token with which the chat template ends an answer, ``end_tokens`` those at which llama.cpp
    stops, ``stop`` the registered stop texts.
    """
    if end_of_turn is None or end_of_turn in end_tokens or end_of_turn in stop:
        return None
    return (
        f"the chat template ends an answer with {end_of_turn!r}, which neither is an end token of the GGUF"
        f" ({', '.join(end_tokens) or 'it has none'}) nor stands in the parameter stop ({', '.join(stop) or 'which is empty'}):"
        f" the model would not stop. Add it to ollama.parameters.stop, or set eos_token in the tokenizer."
    )
