"""How much of one text also stands in another, sentence by sentence, in bounded memory."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ollamake.chat_files import read_chat
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.text_files import read_text

MAX_SHARE = 0.05
"""Of the evaluation text's characters: what was calibrated on is measured too well."""
LEAST_CHARACTERS = 16
LEAST_CHARACTERS_JAPANESE = 10
"""Shorter sentences stand in every text."""
BLOCK_OF_SENTENCES = 500_000
"""Sentences whose hashes are held at once, about 50 MB; of a longer text the other is read once for each so many."""
_LONGEST_SENTENCE = 4096
"""Characters: what has no end by then is cut, so that a text without line ends is held nowhere."""

# A full stop ends a sentence before white space only: 1.5 and example.com are one.
_END = re.compile(r"\n|(?<=[。．！？])|(?<=[.!?])(?=\s)")
_CJK = re.compile(r"[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class Source:
    """One of the user's files; ``kind`` is "text" or "chat", ``used`` how many characters or conversations are, if known."""

    path: Path
    kind: str
    key: str
    """The configuration key that messages name."""
    used: int | None = None


@dataclass(frozen=True)
class Overlap:
    """``share`` (0 to 1) of a text's characters stand in sentences of another; the first of these, and where it stands."""

    share: float
    sentence: str = ""
    file: Path | None = None
    other_file: Path | None = None


def sources(key: str, texts: Sequence[Path], chats: Sequence[Path]) -> list[Source]:
    """Return the sources of a key's prefix, such as models.m.quality, in the order in which they are joined."""
    named = [Source(path, "text", f"{key}.text") for path in texts]
    return named + [Source(path, "chat", f"{key}.chat") for path in chats]


def refuse_same_files(mine: Sequence[Source], others: Sequence[Source]) -> None:
    """Raise OllamakeError if a file, or a copy of it, is among both. All must exist."""
    for one in mine:
        for other in others:
            same = one.path.samefile(other.path)
            equal = one.path.stat().st_size == other.path.stat().st_size
            if same or (equal and sha256_of(one.path) == sha256_of(other.path)):
                what = f"the file {one.path} is" if same else f"{one.path} and {other.path} are equal, they are"
                raise OllamakeError(
                    f"{one.key}: {what} given in {other.key}, too. What the importance matrix is computed from cannot show"
                    " what it loses: give different texts."
                )


def text_overlap(mine: Sequence[Source], others: Sequence[Source], max_bytes: int | None = None) -> Overlap:
    """Return how much of ``mine`` also stands in ``others``: sentences, and their share of all characters.

    Case, width of letters (NFKC) and white space do not count; of chats what user and assistant say. ``max_bytes`` of each file
    are read at most. Raises OllamakeError for a file that cannot be read.
    """
    total = shared = 0
    first: tuple[str, Path] | None = None
    sentences = _sentences(mine, max_bytes)
    complete = False
    while not complete:
        # The hash has 64 bits: that two of a million different sentences have the same is a chance of 3e-8.
        block: dict[int, int] = {}
        complete = True
        for text, _ in sentences:
            total += len(text)
            if _is_long(text):
                block[hash(text)] = block.get(hash(text), 0) + len(text)
                if len(block) == BLOCK_OF_SENTENCES:
                    complete = False
                    break
        found = {hash(text) for text, _ in _sentences(others, max_bytes) if hash(text) in block} if block else set()
        shared += sum(block[number] for number in found)
        if found and first is None:
            first = next((text, file) for text, file in _sentences(mine, max_bytes) if hash(text) in found)
    if first is None:
        return Overlap(0.0)
    other_file = next(file for text, file in _sentences(others, max_bytes) if text == first[0])
    return Overlap(shared / total, *first, other_file)


def overlap_fault(overlap: Overlap, mine: Sequence[Source], others: Sequence[Source]) -> str:
    """Return what is to be said of an overlap."""
    key = next(one.key for one in mine if one.path == overlap.file)
    other_key = next(one.key for one in others if one.path == overlap.other_file)
    shown = overlap.sentence[:80] + ("..." if len(overlap.sentence) > 80 else "")
    return (
        f"{key}: {100 * overlap.share:.3g} % of the text (characters, by sentences) also stand in that of {other_key}; the"
        f" first sentence is «{shown}» in {overlap.file} and {overlap.other_file}. What the importance matrix is computed from"
        " cannot show what it loses"
    )


def overlap_warning(overlap: Overlap) -> str:
    """Return what is to be said beside the figures, in a sentence, of an overlap that is not refused."""
    return (
        f"{100 * overlap.share:.3g} % of the text that was measured on (characters, by sentences) was calibrated on, too: the"
        " figures of types that are made with the importance matrix may look a little better than they are."
    )


def refuse_overlap(overlap: Overlap, mine: Sequence[Source], others: Sequence[Source]) -> None:
    """Raise OllamakeError if too much of a text stands in the other."""
    if overlap.share > MAX_SHARE:
        raise OllamakeError(
            f"{overlap_fault(overlap, mine, others)}: at most {100 * MAX_SHARE:.0f} % may be in both. Take these sentences out of"
            " one of them."
        )


def _is_long(sentence: str) -> bool:
    if len(sentence) >= LEAST_CHARACTERS:
        return True
    return len(sentence) >= LEAST_CHARACTERS_JAPANESE and _CJK.search(sentence) is not None


def _sentences(files: Sequence[Source], max_bytes: int | None) -> Iterator[tuple[str, Path]]:
    """Yield sentences, normalized, each with its file."""
    for source in files:
        blocks = _text_blocks(source, max_bytes) if source.kind == "text" else _chat_blocks(source, max_bytes)
        for block in blocks:
            for sentence in _END.split(block):
                parts = [sentence] if len(sentence) <= _LONGEST_SENTENCE else _cut(sentence)
                for text in map(normalized, parts):
                    if text:
                        yield text, source.path


def _cut(sentence: str) -> list[str]:
    return [sentence[begin : begin + _LONGEST_SENTENCE] for begin in range(0, len(sentence), _LONGEST_SENTENCE)]


def normalized(sentence: str) -> str:
    """Return a sentence without differences of case, width and white space."""
    return " ".join(unicodedata.normalize("NFKC", sentence).split()).casefold()


def _text_blocks(source: Source, max_bytes: int | None) -> Iterator[str]:
    """Yield a text in parts that end where sentences end."""
    rest = ""
    for block in read_text(source.path, source.key, max_bytes):
        rest += block
        end = max((rest.rfind(mark) for mark in ("\n", "。", "．", "！", "？", ". ", "! ", "? ")), default=-1) + 1
        if len(rest) - end > _LONGEST_SENTENCE:
            end = len(rest) - _LONGEST_SENTENCE
        yield rest[:end]
        rest = rest[end:]
    yield rest


def _chat_blocks(source: Source, max_bytes: int | None) -> Iterator[str]:
    for conversation in read_chat(source.path, source.key, max_bytes):
        yield from conversation.contents()
