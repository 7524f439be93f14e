"""Whether a text, once its tokens are known, is fit for calibration or evaluation: refusals and warnings, in words."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ollamake.errors import OllamakeError
from ollamake.perplexity_output import SMALLEST_SAMPLE, chunks_needed, scored_tokens
from ollamake.text_overlap import Source
from ollamake.text_tokens import TextTokenizer

MAX_UNKNOWN = 0.01
"""Share of unknown tokens, above which a text is refused."""
MAX_BYTES = 0.5
"""Share of tokens that are single bytes, above which the tokenizer hardly knows the language."""
MORE_THAN_NEEDED = 0.05
"""What a text has beyond the tokens of its chunks: llama.cpp may count a few less."""
FEWEST_CHUNKS = {"evaluation": 20, "calibration": 50}
"""Below it is warned."""
_EXAMPLES = 5
"""Of what the tokenizer does not know."""
_CONTEXT_STEP = 32
"""Tokens of which a recommended context is a multiple."""

_KLD_ERROR_OF_ONE_CHUNK = 0.67
"""Standard error of the mean KL divergence, as a share of it; it falls with the root of the number of chunks."""
_TOP_ERROR_OF_ONE_CHUNK = 1.5
"""The same of the share of tokens with the same likeliest token, in percent points.

Both from Qwen3.6-27B, Q4_K_M, 580 chunks of 512 tokens: KLD 0.02469 ± 0.00069, same top token 94.20 ± 0.06 %.
"""
_CONTEXT_OF_ONE_CHUNK = 512


@dataclass
class TextFigures:
    """What is counted as a text is written."""

    tokens: int = 0
    characters: int = 0
    unknown: int = 0
    unknown_parts: list[str] = field(default_factory=list)
    """The first parts of the text that are unknown."""
    single_bytes: int = 0
    specials: Counter[str] = field(default_factory=Counter)
    """Special token -> how often its text stands in plain text."""

    def add(self, text: str, ids: Sequence[int], tokenizer: TextTokenizer, plain: bool) -> None:
        """Count a piece of text and its ids; ``plain``: it is not rendered by the chat template."""
        self.tokens += len(ids)
        self.characters += len(text)
        unknown = sum(number == tokenizer.unknown_id for number in ids) if tokenizer.unknown_id is not None else 0
        if unknown and not self.unknown_parts:
            parts = dict.fromkeys(part.strip() for part in tokenizer.unknown(text))
            self.unknown_parts = [part for part in parts if part][:_EXAMPLES]
        self.unknown += unknown
        self.single_bytes += sum(number in tokenizer.byte_ids for number in ids) if tokenizer.byte_ids else 0
        if plain:
            self.specials.update(_literal_specials(text, tokenizer.special_texts))


def _literal_specials(text: str, specials: Sequence[str]) -> dict[str, int]:
    """Return the special tokens whose texts stand in a text, and how often; vocabularies have up to thousands of them."""
    begins = {begin for begin in {special[:3] for special in specials} if begin and begin in text}
    counts = {special: text.count(special) for special in specials if special[:3] in begins}
    return {special: count for special, count in counts.items() if count}


def refuse_few_chunks(purpose: str, mine: Sequence[Source], chunks: int | None, context: int) -> None:
    """Raise OllamakeError if so few chunks are asked for that llama-perplexity makes no statistics of them."""
    if purpose == "evaluation" and chunks is not None and chunks < (needed := chunks_needed(context)):
        larger = next(one for one in itertools.count(_CONTEXT_STEP, _CONTEXT_STEP) if chunks_needed(one) <= chunks)
        raise OllamakeError(
            f"{key_prefix(mine)}.chunks: {chunks} chunks of {context} tokens have {scored_tokens(context, chunks)} scored tokens;"
            f" llama-perplexity makes no statistics of less than {SMALLEST_SAMPLE}. Ask for {needed} chunks or more, or raise"
            f" {key_prefix(mine)}.context to {larger} or more."
        )


def fewest_chunks(purpose: str, context: int) -> int:
    """Return how many chunks a text must have: llama.cpp takes none of less than two, and statistics may need more."""
    return max(2, chunks_needed(context)) if purpose == "evaluation" else 2


def _fewest_tokens(purpose: str, context: int) -> int:
    """Return how many tokens, by the checkpoint's tokenizer, make these chunks by llama.cpp's, too.

    It is told after the merge only that a text to measure on is too short, so a few more are asked for.
    """
    more = MORE_THAN_NEEDED if purpose == "evaluation" else 0
    return math.ceil(fewest_chunks(purpose, context) * context * (1 + more))


def refuse_unusable(figures: TextFigures, purpose: str, mine: Sequence[Source], context: int) -> None:
    """Raise OllamakeError for a text that is too short for its purpose, or that the tokenizer does not know."""
    key = key_of(mine)
    if figures.unknown > MAX_UNKNOWN * figures.tokens:
        raise OllamakeError(
            f"{key}: {_unknown(figures)}. More than {100 * MAX_UNKNOWN:.0f} % would be judged on what it never learnt: give text"
            " in the language and the characters of the model."
        )
    needed = _fewest_tokens(purpose, context)
    if figures.tokens < needed:
        chunks = fewest_chunks(purpose, context)
        more = f", and {100 * MORE_THAN_NEEDED:.0f} % in case llama.cpp counts less" if purpose == "evaluation" else ""
        characters = math.ceil((needed - figures.tokens) * max(figures.characters, 1) / max(figures.tokens, 1))
        largest = _largest_context(figures.tokens, purpose)
        smaller = (
            f", or set {key_prefix(mine)}.context to {largest}, the largest multiple of {_CONTEXT_STEP} that would do"
            if 0 < largest < context
            else f". No smaller context of {_CONTEXT_STEP} or more would do"
        )
        raise OllamakeError(
            f"{key}: the text is too short: it has {figures.tokens} tokens, and {needed} are needed ({chunks} chunks of"
            f" {context}{more}). Give about {characters} characters more{smaller}."
        )


def _largest_context(tokens: int, purpose: str) -> int:
    """Return the largest recommendable context of which a text has enough chunks, 0 if there is none."""
    most = tokens // 2 // _CONTEXT_STEP * _CONTEXT_STEP
    contexts = range(most, 0, -_CONTEXT_STEP)
    return next((context for context in contexts if _fewest_tokens(purpose, context) <= tokens), 0)


def warnings_of(
    figures: TextFigures,
    purpose: str,
    mine: Sequence[Source],
    chunks: int,
    asked: int | None,
    context: int,
    parse_special: bool,
) -> list[str]:
    """Return what is worth knowing of a text that is used: sentences. ``chunks`` are made, ``asked`` were asked for or None."""
    key = key_of(mine)
    found = []
    if figures.unknown:
        found.append(f"{key}: {_unknown(figures)}.")
    if figures.single_bytes > MAX_BYTES * figures.tokens:
        found.append(
            f"{key}: {100 * figures.single_bytes / figures.tokens:.0f} % of the tokens are single bytes: the tokenizer hardly"
            " knows this language, so a chunk has little text, and the figures say little of the languages that it knows."
        )
    if figures.specials:
        shown = ", ".join(f"{special!r} ({count} times)" for special, count in figures.specials.most_common(5))
        more = f" and {len(figures.specials) - 5} others" if len(figures.specials) > 5 else ""
        meaning = (
            "they are parsed as these special tokens, since there is chat beside it, and the whole text is read so"
            if parse_special
            else "they are read as plain text, not as these tokens"
        )
        found.append(f"{key}: the plain text has special tokens of the model literally: {shown}{more}; {meaning}.")
    if chunks < FEWEST_CHUNKS[purpose]:
        found.append(f"{key}: {_few_chunks(purpose, key_prefix(mine), chunks, asked, context)}")
    return found


def key_prefix(mine: Sequence[Source]) -> str:
    """Return the part of the configuration key that all sources share: models.m.quality."""
    return mine[0].key.rpartition(".")[0]


def key_of(mine: Sequence[Source]) -> str:
    """Return the configuration keys that sources come from: models.m.quality.text, or "... .text and .chat"."""
    kinds = list(dict.fromkeys(source.kind for source in mine))
    return f"{key_prefix(mine)}.{' and .'.join(kinds)}"


def _unknown(figures: TextFigures) -> str:
    shown = ", ".join(map(_shown_part, figures.unknown_parts))
    return (
        f"the tokenizer does not know {figures.unknown} of the {figures.tokens} tokens of the text"
        f" ({100 * figures.unknown / figures.tokens:.3g} %)" + (f", such as {shown}" if shown else "")
    )


def _shown_part(part: str) -> str:
    return f"{part} (U+{ord(part):04X})" if len(part) == 1 else f"{part[:12]}..." if len(part) > 12 else part


def _few_chunks(purpose: str, prefix: str, chunks: int, asked: int | None, context: int) -> str:
    fewest = FEWEST_CHUNKS[purpose]
    remedy = f"Set {prefix}.chunks to {fewest} or more" if asked is not None and chunks == asked else "Give more text"
    if purpose == "calibration":
        return f"{chunks} chunks of {context} tokens are few for an importance matrix; 100 to 300 are usual. {remedy}."
    root = math.sqrt(chunks * context / _CONTEXT_OF_ONE_CHUNK)
    return (
        f"{chunks} chunks of {context} tokens are few, so the error bars are wide: about"
        f" ±{100 * _KLD_ERROR_OF_ONE_CHUNK / root:.0f} % of the mean KL divergence and"
        f" ±{_TOP_ERROR_OF_ONE_CHUNK / root:.1f} percent points of the same top token (1 sigma)."
        f" {remedy}."
    )
