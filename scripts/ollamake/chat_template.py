"""Which TEMPLATE to register, so that the model is prompted in Ollama as it was in training.

Ollama's own guess compares the tokenizer's Jinja template with a list by edit distance, and versions before 0.30 render
a model without TEMPLATE as the bare prompt. Here a Go template is derived from the Jinja itself, and given only if both say
the same on every conversation of conversations.py that the Jinja accepts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import partial

from jinja2 import TemplateError

from ollamake.conversations import CONVERSATIONS, Conversation, assistant, user
from ollamake.errors import OllamakeError
from ollamake.jinja_rendering import TemplateUnbounded, bounded, render_unbounded
from ollamake.template_families import Turns
from ollamake.template_probing import NotDerivable, derive

log = logging.getLogger("ollamake")

TOOLS = "the TEMPLATE cannot write tools as the chat template does, so Ollama takes none for this model"
EMPTY = "the chat template treats an empty content in a way of its own; Ollama is seldom given one"
EXTRA_BOS = "the server puts the GGUF's beginning-of-sequence token in front, which the chat template does not write"

FAMILY_MARKS = (
    ("<|im_sep|>", "Phi-4"),
    ("<|im_start|>", "ChatML"),
    ("<|start_header_id|>", "Llama 3"),
    ("<<SYS>>", "Llama 2"),
    ("[INST]", "Mistral"),
    ("<start_of_turn>", "Gemma"),
    ("<|START_OF_TURN_TOKEN|>", "Command R"),
    ("<｜User｜>", "DeepSeek"),
    ("<|start_of_role|>", "Granite"),
    ("[gMASK]", "GLM"),
    ("<|end|>\n<|assistant|>", "Phi-3"),
    ("<|user|>", "Zephyr"),
    ("### Instruction:", "Alpaca"),
    ("### User:", "Solar"),
    ("USER:", "Vicuna"),
)
"""A text that a family writes, and what it is usually called; the first that is found names it."""


@dataclass(frozen=True)
class ChosenTemplate:
    """A Go template, and on which conversations it says what the chat template says.

    Neither proven nor deviations are the conversations that the chat template refuses, and those with tools if it ignores
    tools.
    """

    family: str
    go_template: str
    proven: tuple[str, ...]
    turns: Turns
    """What the Go template says, in Python."""
    deviations: dict[str, str] = field(default_factory=dict)
    """Name of a conversation, or "BOS", -> why it is prompted differently."""


def render_jinja(chat_template: str, conversation: Conversation, bos_token: str, eos_token: str) -> str:
    """Render a chat template as transformers does, ready for the assistant's turn or the rest of it.

    Raises jinja2.TemplateError, also for a template that does not end or needs too much memory.
    """
    text: str = bounded(render_unbounded, chat_template, conversation, bos_token, eos_token)
    return text


def choose_template(chat_template: str, bos_token: str, eos_token: str, server_adds_bos: bool) -> ChosenTemplate | None:
    """Return a TEMPLATE that is proven equal to ``chat_template``, or None. Raises OllamakeError for one that does not end.

    ``server_adds_bos``: the GGUF's tokenizer.ggml.add_bos_token is true, so that the TEMPLATE must not write the first one.
    """
    try:
        chosen: ChosenTemplate = bounded(_choose, chat_template, bos_token, eos_token, server_adds_bos)
    except TemplateUnbounded as error:
        raise _dangerous(error) from error
    except TemplateError as error:
        log.info("no TEMPLATE is proven equal to the chat template: %s. Ollama decides how to prompt the model.", error)
        return None
    log.info(
        "the chat template is of the family %s; a TEMPLATE that says the same on %d conversations is registered",
        chosen.family,
        len(chosen.proven),
    )
    for name, reason in chosen.deviations.items():
        log.info("prompted differently: %s (%s)", name, reason)
    return chosen


def answer_end(chat_template: str, bos_token: str, eos_token: str) -> str:
    """Return the text right after an assistant's content when another turn follows, "" if none can be told.

    Raises OllamakeError for a chat template that does not end.
    """
    try:
        text: str = bounded(_answer_end, chat_template, bos_token, eos_token)
    except TemplateUnbounded as error:
        raise _dangerous(error) from error
    except TemplateError as error:
        log.info("the chat template does not tell how an answer ends: %s", error)
        return ""
    return text


def _dangerous(error: TemplateError) -> OllamakeError:
    """Return why a model with such a template is not registered: a server that renders it comes to a stand, or to its end."""
    return OllamakeError(
        f"{error}: a server that renders it would hang, or use up its memory, so the model is not registered. Put the chat"
        " template that the model was trained with in chat_template.jinja beside the adapter (or the base)."
    )


def _choose(chat_template: str, bos_token: str, eos_token: str, server_adds_bos: bool) -> ChosenTemplate:
    render = partial(render_unbounded, chat_template, bos_token=bos_token, eos_token=eos_token)
    try:
        # Dates stay marked as such, so that the TEMPLATE can say that of the day it is used.
        turns = derive(partial(render, clock="\ue000{}\ue001".format))
        deviations: dict[str, str] = {}
        first = ""
        if server_adds_bos and bos_token:
            first, turns = _leave_bos_to_server(turns, bos_token)
            if not first:
                deviations["BOS"] = EXTRA_BOS
        go_template = turns.go_template()
    except (NotDerivable, ValueError) as error:
        raise TemplateError(str(error)) from error
    proven = []
    for conversation in CONVERSATIONS:
        try:
            expected = render(conversation)
        except TemplateError:
            continue
        if conversation.tools:
            if expected != _without_tools(render, conversation):
                deviations[conversation.name] = TOOLS
        elif expected == first + turns.render(conversation.messages):
            proven.append(conversation.name)
        elif any(message["content"] == "" for message in conversation.messages):
            deviations[conversation.name] = EMPTY
        else:
            raise TemplateError(f"it is unlike any known family in the conversation «{conversation.name}»")
    return ChosenTemplate(_family(turns), go_template, tuple(proven), turns, deviations)


def _leave_bos_to_server(turns: Turns, bos_token: str) -> tuple[str, Turns]:
    """Return what the server writes in front and the family without it; "" if the template writes no BOS."""
    begin = {text.startswith(bos_token) for text in turns.starts()}
    if len(begin) > 1:
        raise NotDerivable("it begins some conversations with BOS and others without, which the server cannot")
    return (bos_token, turns.without_bos(bos_token)) if begin == {True} else ("", turns)


def _without_tools(render: partial[str], conversation: Conversation) -> str:
    """Return "" if the template refuses the conversation without tools: it knows them then."""
    try:
        return render(replace(conversation, tools=None))
    except TemplateError:
        return ""


def _answer_end(chat_template: str, bos_token: str, eos_token: str) -> str:
    render = partial(render_unbounded, chat_template, bos_token=bos_token, eos_token=eos_token)
    question, answer, more = "xqaqx", "xqbqx", "xqcqx"
    turn = (user(question), assistant(answer))
    after = render(Conversation("followed", (*turn, user(more)))).partition(answer)[2].partition(more)[0]
    last = render(Conversation("last", turn), add_generation_prompt=False).partition(answer)[2]
    if last and after.startswith(last):
        return last
    # What stands between answer and question, without what stands before every question.
    before = render(Conversation("asked", turn[:1])).partition(question)[0].removeprefix(bos_token)
    return after.removesuffix(before).removesuffix(bos_token) if before else ""


def _family(turns: Turns) -> str:
    texts = "".join([*turns.gaps.values(), *turns.ends.values()])
    return next((name for mark, name in FAMILY_MARKS if mark in texts), "derived")
