"""Whether a server serves the model that was trained: it stops, is prompted as in training, has room, knows the answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ollamake.chat_template import render_jinja
from ollamake.conversations import Conversation, system
from ollamake.endpoint import Completion, Endpoint
from ollamake.errors import OllamakeError
from ollamake.model_files import chat_template_of
from ollamake.progress import progress_bar
from ollamake.prompt_template import special_texts
from ollamake.questions import Question
from ollamake.text_tokens import load_tokenizer

log = logging.getLogger("ollamake")

NOT_CHECKED = "not checked: "
"""How a sentence begins about what was left out."""
_SHOWN_ANSWERS = 3


@dataclass(frozen=True)
class Expected:
    """What is asked of a server; None leaves a check out."""

    model: str | None
    """The name it must list; None for the only one that it lists."""
    context: int | None
    """The least number of tokens of a conversation."""
    tokenizer: Path | None
    """Folder with tokenizer and chat template: the merged checkpoint."""
    questions: Sequence[Question]
    min_score: float
    message: str
    """Asked where there are no questions."""
    max_tokens: int


def check_endpoint(endpoint: Endpoint, expected: Expected) -> list[str]:
    """Check a server and return what was found, a sentence a check. Raises OllamakeError for the first that fails."""
    folder = expected.tokenizer
    if folder is not None and not folder.is_dir():
        raise OllamakeError(
            f"--tokenizer: there is no folder {folder}. It is that of the merged checkpoint: results/NAME/merged"
        )
    models = endpoint.models()
    name, said = _model(endpoint, models, expected.model)
    found = [said]
    log.info("%s", said)

    def report(sentence: str) -> None:
        found.append(sentence)
        log.info("%s", sentence)

    messages = [{"role": "user", "content": expected.message}]
    if expected.questions:
        messages = [dict(message) for message in expected.questions[0].messages]
    whole = endpoint.complete(name, messages, expected.max_tokens)
    report(_stopped(name, whole, expected.max_tokens, "answers"))
    streamed = endpoint.stream(name, messages, expected.max_tokens)
    report(
        _stopped(name, streamed, expected.max_tokens, "streams")
        + (", the same text" if streamed.text == whole.text else ", another text than at once")
    )
    report(_context(endpoint.context(name, models), expected.context))
    if folder is None:
        report(f"{NOT_CHECKED}how it is prompted, as no --tokenizer is given")
    else:
        report(_prompted(endpoint, name, messages, whole, folder))
    if expected.questions:
        report(_answered(endpoint, name, expected))
    return found


def _model(endpoint: Endpoint, models: Sequence[Mapping[str, Any]], asked: str | None) -> tuple[str, str]:
    names = [str(one["id"]) for one in models]
    listed = ", ".join(names) or "none"
    if asked is None:
        if len(names) != 1:
            raise OllamakeError(f"{endpoint.url} lists {len(names)} models: {listed}. Name one with --model")
        return names[0], f"lists its model: {names[0]}"
    if asked in names or f"{asked}:latest" in names:
        return asked, f"lists the model: {asked}"
    if endpoint.is_tgi():
        return asked, f"TGI lists its base only ({listed}); it is asked for {asked}"
    raise OllamakeError(f"{endpoint.url} has no model {asked!r}; it lists {listed}. Give one of them with --model")


def _stopped(name: str, answer: Completion, max_tokens: int, how: str) -> str:
    if answer.finish_reason == "length":
        raise OllamakeError(
            f"{name} does not stop by itself: it was cut off after {max_tokens} tokens (--max-tokens) with {answer.text[-80:]!r}."
            " Either the answer is long, or the token with which training ended answers is not one at which the server stops:"
            " eos_token_id of generation_config.json, and the chat template"
        )
    if answer.finish_reason not in ("stop", "eos_token", "stop_sequence"):
        raise OllamakeError(
            f"{name}: expected finish_reason `stop`; found {answer.finish_reason!r} after {answer.text[:80]!r}"
        )
    if not answer.text.strip():
        raise OllamakeError(f"{name} answers nothing: it stops at once. Is it prompted as in training? See --tokenizer")
    return f"{how} and stops by itself: {answer.text[:60]!r}"


def _context(served: tuple[int, str] | None, asked: int | None) -> str:
    if served is None:
        if asked is None:
            return f"{NOT_CHECKED}the server does not say how long a conversation may be"
        raise OllamakeError(
            f"--context {asked}: the server does not say how long a conversation may be, so it cannot be checked"
        )
    tokens, place = served
    if asked is not None and tokens < asked:
        raise OllamakeError(
            f"conversations may have {tokens:,} tokens ({place}), expected at least {asked:,} (--context). Start the"
            " server with the planned length: max-model-len, num_ctx, -c"
        )
    return f"conversations may have {tokens:,} tokens ({place})" + (f", {asked:,} are expected" if asked else "")


def _prompted(
    endpoint: Endpoint, name: str, messages: Sequence[dict[str, Any]], answer: Completion, folder: Path
) -> str:
    """Compare the number of tokens of a prompt with that of the tokenizer's own rendering."""
    if answer.prompt_tokens is None:
        raise OllamakeError(
            f"{endpoint.url} does not count the tokens of prompts (usage.prompt_tokens): leave out --tokenizer"
        )
    template = chat_template_of(folder)
    if template is None:
        raise OllamakeError(f"--tokenizer: {folder} has no chat template to compare with")
    added = None if messages[0]["role"] == "system" else endpoint.added_system(name)
    conversation = Conversation("asked", tuple([system(added), *messages] if added else messages))
    try:
        text = render_jinja(template, conversation, *special_texts(folder))
    except TemplateError as error:
        raise OllamakeError(f"the chat template in {folder} refuses the conversation: {error}") from error
    expected = len(load_tokenizer(folder, parse_special=True).ids(text))
    if expected != answer.prompt_tokens:
        raise OllamakeError(
            f"{name} is not prompted as in training: the server's prompt has {answer.prompt_tokens} tokens, the chat template in"
            f" {folder} gives {expected}: {text[:300]!r}. Give the server this chat"
            " template, or the tokenizer of training"
        )
    return f"is prompted with as many tokens as in training: {expected}"


def _answered(endpoint: Endpoint, name: str, expected: Expected) -> str:
    wrong, count = [], len(expected.questions)
    with progress_bar(count, f"asking {name}", unit=" questions") as progress:
        for question in expected.questions:
            answer = endpoint.complete(name, list(question.messages), expected.max_tokens).text
            if not question.is_answered_by(answer):
                wrong.append(f"{question.messages[-1]['content'][:80]!r}: {answer[:120]!r}")
            progress.update()
    right = count - len(wrong)
    if right < expected.min_score * count:
        raise OllamakeError(
            f"{name} answers {right} of {count} questions rightly, expected at least"
            f" {expected.min_score:.0%} (--min-score):\n    " + "\n    ".join(wrong[:_SHOWN_ANSWERS])
        )
    return f"answers {right} of {count} questions rightly"
