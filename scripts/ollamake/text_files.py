"""The user's plain text files, read a block at a time: UTF-8 without byte order mark, lines ended by line feeds."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from ollamake.errors import OllamakeError
from ollamake.text_encoding import guess, is_iso_2022_jp, signature

BLOCK = 1 << 20
"""Bytes read at once."""
_SAMPLE = 64 << 10
"""Bytes from which an encoding is guessed."""
_LINE_BEFORE = 4096
"""Bytes before a wrong one in which the beginning of its line is looked for."""


def read_text(path: Path, key: str, max_bytes: int | None = None) -> Iterator[str]:
    """Yield a text in blocks of up to a million characters, CRLF as LF; at most ``max_bytes`` of the file are read.

    Raises OllamakeError naming ``key`` and the file if it is missing, not UTF-8, binary, or white space only; what is behind the
    last block that is asked for is not looked at.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    place, held, something = 0, "", False
    with open_source(path, key) as file:
        while block := file.read(BLOCK if max_bytes is None else min(BLOCK, max_bytes - place)):
            pending = len(decoder.getstate()[0])
            if b"\x00" in block or (place == 0 and is_iso_2022_jp(block[:_SAMPLE])):
                refuse_bytes(path, key, place + max(block.find(b"\x00"), 0))
            text = held + _decode(decoder, block, False, path, key, place - pending)
            if place == 0:
                text = text.removeprefix("\ufeff")
            place += len(block)
            # Its line feed may be the first byte of the next block.
            held = "\r" if text.endswith("\r") else ""
            text = text.removesuffix("\r").replace("\r\n", "\n")
            something = something or bool(text.strip())
            if text:
                yield text
        if max_bytes is None or place < max_bytes:
            held += _decode(decoder, b"", True, path, key, place - len(decoder.getstate()[0]))
    if held:
        yield held
    if not something:
        what = "has nothing but white space" if place else "is empty"
        raise OllamakeError(f"{key}: {path} {what}. It must have text like that which the model is to be used for.")


def open_source(path: Path, key: str) -> BinaryIO:
    """Open one of the user's files to read bytes. Raises OllamakeError if there is none."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise OllamakeError(f"{key}: {path} {what} (looked from {Path.cwd()}). Give the path of a UTF-8 text file.")
    try:
        return path.open("rb")
    except OSError as error:
        raise OllamakeError(f"{key}: {path} cannot be read: {error}") from error


def refuse_bytes(path: Path, key: str, place: int) -> NoReturn:
    """Raise OllamakeError for a file whose byte number ``place`` (from 0) cannot be of a UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        file.seek(max(0, place - _LINE_BEFORE))
        before = file.read(min(place, _LINE_BEFORE))
        begin = place - len(before) + before.rfind(b"\n") + 1
        file.seek(begin)
        sample = file.read(_SAMPLE)
        line = _lines_before(file, place) + 1
    kind = signature(head)
    if kind is not None:
        raise OllamakeError(f"{key}: {path} is {kind}, not a text file. Extract its text as UTF-8.")
    if is_iso_2022_jp(head):
        raise OllamakeError(
            f"{key}: {path} is not UTF-8, it looks like ISO-2022-JP. {_conversion(path, 'ISO-2022-JP')}"
        )
    wrong = f"byte {place} (0x{sample[place - begin]:02X}, in line {line})"
    encoding = guess(head, sample)
    if encoding is not None:
        name, iconv = encoding
        raise OllamakeError(f"{key}: {path} is not UTF-8 at {wrong}; it looks like {name}. {_conversion(path, iconv)}")
    if b"\x00" in head or sample[place - begin] == 0:
        raise OllamakeError(f"{key}: {path} is a binary file: {wrong} is zero. Give a UTF-8 text file.")
    raise OllamakeError(
        f"{key}: {path} is not UTF-8 at {wrong}, and its encoding cannot be told. Convert it with `iconv -f ENCODING -t UTF-8`,"
        " or mend that place if only it is damaged."
    )


def _conversion(path: Path, iconv: str) -> str:
    converted = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return f"Convert it: iconv -f {iconv} -t UTF-8 '{path}' > '{converted}'"


def _lines_before(file: BinaryIO, place: int) -> int:
    file.seek(0)
    lines, left = 0, place
    while block := file.read(min(BLOCK, left)):
        lines += block.count(b"\n")
        left -= len(block)
    return lines


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, final: bool, path: Path, key: str, place: int) -> str:
    """Decode a block; ``place`` is the number of its first byte, with those that the decoder holds of the one before."""
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        refuse_bytes(path, key, place + error.start)
