"""The text that a model is calibrated or evaluated on: the user's files, joined, rendered, counted, cut and checked."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ollamake.atomic_write import open_atomically
from ollamake.chat_rendering import rendered_chat
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.merged_checkpoint import read_model_files
from ollamake.progress import progress_bar
from ollamake.prompt_template import special_texts
from ollamake.text_faults import MORE_THAN_NEEDED, TextFigures, refuse_few_chunks, refuse_unusable, warnings_of
from ollamake.text_files import open_source, read_text
from ollamake.text_overlap import Source
from ollamake.text_tokens import TextTokenizer, load_tokenizer

log = logging.getLogger("ollamake")

PIECE = 128 << 10
"""Characters that are tokenized at once."""
_LONG_LINE = 2000
"""Characters of a line, above which a cut need not wait for its end."""
_SENTENCE_END = re.compile(r"[。．.!?！？]+\s*|\s+")


@dataclass(frozen=True)
class _Piece:
    """A part of the joined text, and where it may be cut: behind lines or conversations, the last time at its end."""

    text: str
    ends: Sequence[int]
    conversations: bool


@dataclass
class _Written:
    """What has been written so far."""

    file: BinaryIO
    figures: TextFigures = field(default_factory=TextFigures)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, text: str, ids: Sequence[int], tokenizer: TextTokenizer, plain: bool) -> None:
        content = text.encode("utf-8")
        self.file.write(content)
        self.digest.update(content)
        self.figures.add(text, ids, tokenizer, plain)


def prepare_text(
    purpose: str,
    model_files: Path,
    mine: Sequence[Source],
    chunks: int | None,
    context: int,
    output: Path,
) -> dict[str, Any]:
    """Write the text of ``purpose`` ("evaluation" or "calibration") to ``output`` and return its record.

    ``model_files`` is model_files.json of the merged checkpoint. ``chunks`` of ``context`` tokens are wanted, None: of all the
    text; what is not needed is not read.

    The record: ``sources`` (file, kind, sha256, units that are used: conversations of a chat, 1 of a text), ``tokens`` (of the
    written text, without a BOS), ``chunks`` that they make, ``cut`` (something is left over), ``parse_special``,
    ``unknown_tokens``, ``sha256``, ``warnings``. Raises OllamakeError for a text that cannot be used.
    """
    for source in mine:
        open_source(source.path, source.key).close()
    refuse_few_chunks(purpose, mine, chunks, context)
    has_chat = any(source.kind == "chat" for source in mine)
    tokenizer = load_tokenizer(model_files.parent, parse_special=has_chat)
    template = _chat_template(model_files, mine) if has_chat else None
    # llama.cpp takes no text of less than two chunks, even where one is asked for.
    wanted = None if chunks is None else math.ceil(max(chunks, 2) * context * (1 + MORE_THAN_NEEDED))
    with open_atomically(output) as file:
        written = _Written(file)
        used, cut = _write(written, mine, tokenizer, template, model_files.parent, wanted)
        refuse_unusable(written.figures, purpose, mine, context)
    tokens = written.figures.tokens
    made = tokens // context if chunks is None else min(tokens // context, chunks)
    warnings = warnings_of(written.figures, purpose, mine, made, chunks, context, has_chat)
    warnings += _unused(used, chunks, context)
    for warning in warnings:
        log.warning("%s", warning)
    return {
        "purpose": purpose,
        "sources": [_source_record(source) for source in used],
        "context": context,
        "tokens": tokens,
        "chunks": made,
        "cut": cut,
        "parse_special": has_chat,
        "unknown_tokens": written.figures.unknown,
        "sha256": written.digest.hexdigest(),
        "warnings": warnings,
    }


def _write(
    written: _Written,
    mine: Sequence[Source],
    tokenizer: TextTokenizer,
    template: str | None,
    folder: Path,
    wanted: int | None,
) -> tuple[list[Source], bool]:
    """Write what makes ``wanted`` tokens; return the sources with what is used of them, and whether something is left."""
    bos, eos = special_texts(folder) if template is not None else ("", "")
    used: list[Source] = []
    cut = False
    with progress_bar(wanted or 0, "text", unit=" tokens") as bar:
        for source in mine:
            amount = 0
            if template is not None and source.kind == "chat":
                ends = (*filter(None, tokenizer.special_texts), "\n")
                pieces = _chat_pieces(rendered_chat(source.path, source.key, template, bos, eos), ends)
            else:
                pieces = _text_pieces(source)
            # What is left of a source is told by asking for one more piece.
            for piece in pieces if wanted is None or written.figures.tokens < wanted else ():
                left = None if wanted is None else wanted - written.figures.tokens
                end, ids = _cut(piece, tokenizer, left, continued=written.figures.tokens > 0)
                plain = not piece.conversations
                written.add(piece.text[:end], ids, tokenizer, plain)
                amount += end if plain else bisect_left(piece.ends, end) + 1
                bar.update(len(ids))
                if left is not None and len(ids) >= left:
                    cut = cut or end < len(piece.text) or next(pieces, None) is not None
                    break
            cut = cut or amount == 0
            used.append(replace(source, used=amount))
        # A text may have less than was wanted: that is all of it.
        bar.total = bar.n
    return used, cut


def _cut(piece: _Piece, tokenizer: TextTokenizer, left: int | None, continued: bool) -> tuple[int, list[int]]:
    """Return where a piece ends, so that it has at least ``left`` tokens if it has so many, and its ids up to there."""

    def ids(end: int) -> list[int]:
        return tokenizer.ids(piece.text[:end], continued)

    def first(ends: Sequence[int]) -> int:
        return bisect_left(ends, left or 0, key=lambda end: len(ids(end)))

    whole = ids(len(piece.text))
    if left is None or len(whole) <= left:
        return len(piece.text), whole
    place = min(first(piece.ends), len(piece.ends) - 1)
    begin, end = piece.ends[place - 1] if place else 0, piece.ends[place]
    if end - begin > _LONG_LINE and not piece.conversations:
        inner = [begin + match.end() for match in _SENTENCE_END.finditer(piece.text[begin:end])]
        gaps = itertools.pairwise([begin, *inner, end])
        inner = inner if max(after - before for before, after in gaps) <= _LONG_LINE else range(begin + 1, end)
        inside = first(inner)
        end = inner[inside] if inside < len(inner) else end
    return end, ids(end)


def _text_pieces(source: Source) -> Iterator[_Piece]:
    """Yield a text in pieces that are tokenized as they are in the whole; the last ends in a line feed."""
    rest, last = "", "\n"
    for block in read_text(source.path, source.key):
        rest += block
        begin = 0
        while len(rest) - begin > PIECE:
            end = _separable(rest, begin, begin + PIECE)
            yield _lines(rest[begin:end])
            begin = end
        rest, last = rest[begin:], block[-1]
    yield _lines(rest if last == "\n" else rest + "\n")


def _separable(text: str, begin: int, end: int) -> int:
    """Return a place up to ``end`` where a word ends whatever the tokenizer: behind a line end, if it can be."""
    for separator, keep in (("\n", 1), (" ", 0)):
        place = text.rfind(separator, begin, end)
        while place > begin and text[place + 1].isspace():
            place = text.rfind(separator, begin, place)
        if place > begin:
            return place + keep
    return end


def _lines(text: str) -> _Piece:
    ends = [match.end() for match in re.finditer("\n", text)]
    return _Piece(text, ends if ends and ends[-1] == len(text) else [*ends, len(text)], conversations=False)


def _chat_pieces(batches: Iterator[list[str]], ends: tuple[str, ...]) -> Iterator[_Piece]:
    """Yield conversations one behind the other, a line feed between those whose end nothing marks."""
    for batch in batches:
        texts = [text if text.endswith(ends) else text + "\n" for text in batch]
        places = list(itertools.accumulate(map(len, texts)))
        begin = first = 0
        for count, end in enumerate(places, start=1):
            if end - begin >= PIECE or count == len(places):
                joined = "".join(texts[first:count])
                yield _Piece(joined, [place - begin for place in places[first:count]], conversations=True)
                begin, first = end, count


def _chat_template(model_files: Path, mine: Sequence[Source]) -> str:
    name = read_model_files(model_files)["chat_template"]
    if name is None:
        key = next(source.key for source in mine if source.kind == "chat")
        raise OllamakeError(
            f"{key}: the model has no chat template, so conversations cannot be written as it was trained on them. Put its"
            f" chat_template.jinja beside the adapter, or give plain text as {key.removesuffix('chat')}text."
        )
    return (model_files.parent / name).read_bytes().decode("utf-8")


def _source_record(source: Source) -> dict[str, Any]:
    units = source.used if source.kind == "chat" else min(source.used or 0, 1)
    return {"file": str(source.path), "kind": source.kind, "sha256": sha256_of(source.path), "units": units}


def _unused(used: Sequence[Source], chunks: int | None, context: int) -> list[str]:
    files = [str(source.path) for source in used if not source.used]
    if not files:
        return []
    return [
        f"nothing of {', '.join(files)} is used: what comes before it makes the {chunks} chunks of {context} tokens. Give it"
        " first, shorten the others, or ask for more chunks."
    ]
