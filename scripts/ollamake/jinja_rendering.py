"""Render a tokenizer's chat template as transformers does, without trusting it: it comes with a downloaded model.

What a template can use and how an answer is continued is that of transformers 5 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import resource
import signal
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ollamake.conversations import Conversation

MAX_CHARACTERS = 1_000_000
MAX_SECONDS = 20
MAX_MORE_BYTES = 1024**3

_MOST_WAITING = 10
"""Seconds of waiting for each of computing."""
_TOO_SLOW = "the chat template did not end within {} seconds"
_BROKE = "the chat template brought its process down"

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

Clock = Callable[[str], str]
"""A format of strftime -> the date."""


class TemplateUnbounded(TemplateError):
    """A template that would never end, or take all memory: whatever renders it without bounds must not be given it."""


def today(date_format: str) -> str:
    return datetime.datetime.now().strftime(date_format)


class _GenerationBlock(Extension):
    """{% generation %} marks for training what the assistant says; it writes what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=4)
def _compiled(chat_template: str, clock: Clock) -> Template:
    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = clock
    return environment.from_string(chat_template)


def render_unbounded(
    chat_template: str,
    conversation: Conversation,
    bos_token: str,
    eos_token: str,
    clock: Clock = today,
    add_generation_prompt: bool = True,
) -> str:
    """Render, ready for the assistant's turn or for the rest of it. Raises TemplateError, or MemoryError, whatever went wrong.

    Only output is bounded; call it inside ``bounded``.
    """
    variables: dict[str, Any] = {"bos_token": bos_token, "eos_token": eos_token}
    # A token that a tokenizer lacks is no variable of its templates.
    variables = {name: token for name, token in variables.items() if token}
    variables["add_generation_prompt"] = add_generation_prompt and not conversation.continues
    variables["tools"] = list(conversation.tools) if conversation.tools else None
    messages = [dict(message) for message in conversation.messages]
    if conversation.continues:
        messages[-1]["content"] += CONTINUE_TAG
    try:
        text = _collect(_compiled(chat_template, clock), messages=messages, documents=None, **variables)
    except (TemplateError, MemoryError):
        raise
    except Exception as error:  # a template may bring about any, its compilation too
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return _cut_at_tag(text, conversation.messages[-1]["content"]) if conversation.continues else text


def _collect(template: Template, **variables: Any) -> str:
    chunks: list[str] = []
    length = 0
    for chunk in template.generate(**variables):
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_CHARACTERS:
            raise TemplateUnbounded(f"the chat template writes more than {MAX_CHARACTERS} characters")
    return "".join(chunks)


def _cut_at_tag(text: str, answer: str) -> str:
    """Drop what follows the unfinished answer; its own trailing blanks too where the template trims contents."""
    place = text.rfind(CONTINUE_TAG.strip())
    if place < 0 or answer.strip() not in text:
        raise TemplateError("the chat template does not write the last answer as it is")
    return text[:place] if text.startswith(CONTINUE_TAG, place) else text[:place].rstrip()


def bounded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process of its own, which may compute for MAX_SECONDS and use MAX_MORE_BYTES more than this one.

    Jinja's sandbox bounds neither loops that write nothing nor the length of strings. The function may raise
    TemplateError only; what it returns must be picklable. Raises TemplateUnbounded for a template that wants more.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, function, arguments), daemon=True)
    child.start()
    there.close()
    try:
        # On a machine that is busy an honest one takes its time.
        if not here.poll(_MOST_WAITING * MAX_SECONDS):
            raise TemplateUnbounded(_TOO_SLOW.format(MAX_SECONDS))
        result = here.recv()
    except EOFError:
        child.join()
        ended = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        raise TemplateUnbounded(_TOO_SLOW.format(MAX_SECONDS) if ended else _BROKE) from None
    finally:
        child.kill()
        child.join()
        here.close()
    if isinstance(result, TemplateError):
        raise result
    return result


def _answer(connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    data_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    limit = data_pages * resource.getpagesize() + MAX_MORE_BYTES
    for kind, soft in ((resource.RLIMIT_DATA, limit), (resource.RLIMIT_CPU, MAX_SECONDS), (resource.RLIMIT_CORE, 0)):
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))
    try:
        result = function(*arguments)
    except TemplateError as error:
        # What it was raised with need not be picklable.
        result = (
            type(error)(str(error)) if type(error) in (TemplateError, TemplateUnbounded) else TemplateError(str(error))
        )
    except MemoryError:
        result = TemplateUnbounded(f"the chat template needs more than {MAX_MORE_BYTES >> 20} MiB")
    connection.send(result)
