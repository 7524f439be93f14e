"""The demo's text: questions and answers, their tokenizer, and conversations as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ollamake.errors import OllamakeError

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML without a default system prompt."""

VOCABULARY_SIZE = 4096
"""Rows of the embedding. The text yields fewer tokens; real models have such gaps, too."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer, which llama.cpp implements under the name qwen2."""


@dataclass(frozen=True)
class Example:
    """A question, its answer, and the part of the answer that makes it right ("" where that does not matter)."""

    question: str
    answer: str
    expect: str = ""


def read_examples(path: Path) -> list[Example]:
    """Read a file of one JSON object a line with question and answer, optionally expect.

    Raises OllamakeError with the file and line of the first fault.
    """
    examples: list[Example] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OllamakeError(f"{path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            example = Example(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise OllamakeError(
                f"{path}, line {number}: expected a JSON object with question, answer and optionally expect; {error}"
            ) from error
        values = (example.question, example.answer, example.expect)
        if not all(isinstance(value, str) for value in values) or not example.question or not example.answer:
            raise OllamakeError(
                f"{path}, line {number}: question and answer must be texts that are not empty; found {line}"
            )
        if example.expect not in example.answer:
            raise OllamakeError(
                f"{path}, line {number}: {example.expect!r} (expect) is not in the answer {example.answer!r}"
            )
        examples.append(example)
    if not examples:
        raise OllamakeError(f"{path} has no examples")
    return examples


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer built like Qwen2's; every text round-trips, but for Unicode normalization (NFC)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def conversation(tokenizer: Tokenizer, system: str | None, question: str, answer: str) -> tuple[list[int], int]:
    """Return the token ids of one exchange in ChatML, and where the answer begins; the end of turn belongs to it."""
    turns = [("system", system)] if system else []
    prompt = "".join(f"{START_OF_TURN}{role}\n{text}{END_OF_TURN}\n" for role, text in [*turns, ("user", question)])
    prompt_ids = tokenizer.encode(f"{prompt}{START_OF_TURN}assistant\n").ids
    answer_ids = tokenizer.encode(f"{answer}{END_OF_TURN}").ids
    return prompt_ids + answer_ids, len(prompt_ids)


def document(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """Return the token ids of a plain text between ends of text, and where what is learned begins."""
    return tokenizer.encode(f"{END_OF_TEXT}{text}{END_OF_TEXT}").ids, 1


def all_text(examples: Sequence[Example]) -> list[str]:
    """Return the texts that a tokenizer is trained on."""
    return [text for example in examples for text in (example.question, example.answer)]
