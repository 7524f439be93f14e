"""What can be found wrong with the user's texts before any work starts, without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ollamake.chat_files import read_chat
from ollamake.text_files import read_text
from ollamake.text_overlap import Source, refuse_overlap, refuse_same_files, sources, text_overlap

MAX_BYTES = 64 << 20
"""Of each file: what is behind is checked when it is used."""
MAX_BYTES_COMPARED = 16 << 20
"""The same of the comparison, which takes longer."""


def check_texts(
    key: str,
    texts: Sequence[Path],
    chats: Sequence[Path],
    other_key: str = "",
    other_texts: Sequence[Path] = (),
    other_chats: Sequence[Path] = (),
) -> None:
    """Check the texts of ``key`` (such as models.m.quality) for themselves and against those of ``other_key``.

    Every file must exist, be UTF-8 and have text, chats must have the form of chat_files.read_chat, and at most a twentieth
    may also stand in the other texts. Raises OllamakeError for the first fault.
    """
    mine, others = sources(key, texts, chats), sources(other_key, other_texts, other_chats)
    for source in (*mine, *others):
        _read(source)
    refuse_same_files(mine, others)
    if mine and others:
        refuse_overlap(text_overlap(mine, others, MAX_BYTES_COMPARED), mine, others)


def _read(source: Source) -> None:
    read = read_text if source.kind == "text" else read_chat
    for _ in read(source.path, source.key, MAX_BYTES):
        pass
