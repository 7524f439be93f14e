"""Which TEMPLATE to register, so that the model is prompted in Ollama as it was in training.

Ollama's own guess compares the tokenizer's Jinja template with a list by edit distance, and versions before 0.30 render
a model without TEMPLATE as the bare prompt. Here a Go template is given where it is known to say the same: the
tokenizer's Jinja is rendered on conversations that tell families and their variants apart, as transformers renders it,
and compared with what the Go template renders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

log = logging.getLogger("ollamake")

Message = dict[str, str]

_HI: Message = {"role": "user", "content": "Hi"}
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (_HI,),
    (
        {"role": "system", "content": "道路設計の専門家として回答します。"},
        {"role": "user", "content": "設計速度とは？"},
    ),
    (_HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And then?"}),
    (
        {"role": "system", "content": "Be brief.\n"},
        _HI,
        {"role": "assistant", "content": " Hello. "},
        {"role": "user", "content": "  two\nlines\r\n\n"},
    ),
    ({"role": "user", "content": "<b>&amp; {{ .System }} {% if x %} \\n 🙂 \"quoted\" 'x'"},),
    ({"role": "user", "content": "\n leading and trailing \t"},),
)
"""With and without system, several turns, white space at both ends, what a template engine might escape or execute.

Empty contents are left out: Ollama drops such messages before it renders (server/prompt.go), whatever the template.
"""


@dataclass(frozen=True)
class TemplateFamily:
    """A way of writing conversations: Ollama's Go template, the stop texts it needs, and the same in Python."""

    go_template: str
    stop: tuple[str, ...]
    render: Callable[[Sequence[Message]], str]


def _chatml(messages: Sequence[Message]) -> str:
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"


FAMILIES: dict[str, TemplateFamily] = {
    "ChatML": TemplateFamily(
        go_template=(
            "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        ),
        stop=("<|im_end|>",),
        render=_chatml,
    ),
}


def template_family(chat_template: str) -> TemplateFamily | None:
    """Return the family whose Go template renders every conversation as ``chat_template`` (Jinja) does, or None."""
    try:
        expected = [render_jinja(chat_template, conversation) for conversation in CONVERSATIONS]
    except TemplateError as error:
        log.info("the chat template cannot be rendered here (%s); Ollama decides how to prompt the model", error)
        return None
    for name, family in FAMILIES.items():
        if [family.render(conversation) for conversation in CONVERSATIONS] == expected:
            log.info("the chat template is %s; the same is registered as Ollama's TEMPLATE", name)
            return family
    log.info("the chat template is of no family known here; Ollama decides how to prompt the model")
    return None


def render_jinja(chat_template: str, messages: Sequence[Message]) -> str:
    """Render a chat template as transformers does (utils/chat_template_utils.py), ready for the assistant's turn.

    Raises jinja2.TemplateError. The environment is sandboxed: the template comes with a downloaded model.
    """

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    variables: dict[str, Any] = {"bos_token": "", "eos_token": "", "tools": None, "add_generation_prompt": True}
    return environment.from_string(chat_template).render(messages=list(messages), **variables)
