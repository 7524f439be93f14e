"""What a file that is not UTF-8 text may be instead, told from its bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

_SIGNATURES = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (.docx and .xlsx are such, too)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"PAR1", "a Parquet table"),
    (b"GGUF", "a GGUF"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS in place of a file, which `git lfs pull` fetches",
    ),
    (b"<!DOCTYPE html", "a web page"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_JAPANESE = (("cp932", "Shift_JIS", "CP932"), ("euc_jp", "EUC-JP", "EUC-JP"))
"""Python's name, what people call it, iconv's name. Windows' Shift_JIS has more characters than the standard's."""

_ESCAPES_OF_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")


def signature(head: bytes) -> str | None:
    """Return what kind of file begins with these bytes, in words, or None."""
    return next((what for mark, what in _SIGNATURES if head.startswith(mark)), None)


def is_iso_2022_jp(sample: bytes) -> bool:
    """Whether bytes, which are ASCII and so valid UTF-8, switch to Japanese by ISO 2022's escapes."""
    return _ESCAPES_OF_ISO_2022_JP.search(sample) is not None


def guess(head: bytes, sample: bytes) -> tuple[str, str] | None:
    """Return (what people call the encoding, iconv's name) in which bytes look like text, or None.

    ``head`` are the first bytes of the file, ``sample`` those from the beginning of the line that is not UTF-8.
    """
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark) and _decoded(head, name) is not None:
            return name, name
    # UTF-16 has zeros in every other byte of ASCII, which other encodings have not.
    for name in ("UTF-16LE", "UTF-16BE") if b"\x00" in head else ():
        text = _decoded(head, name)
        if text and "\x00" not in text and _share(text, _is_usual) > 0.3:
            return "UTF-16", name
    if b"\x00" in head or b"\x00" in sample:
        return None
    japanese = [(_kana_share(sample, codec), name, iconv) for codec, name, iconv in _JAPANESE]
    share, name, iconv = max(japanese)
    if share > 0.1:
        return name, iconv
    text = _decoded(sample, "cp1252")
    if text and _share(text, str.isascii) > 0.7 and _share(text, lambda one: one.isascii() or one.isalpha()) > 0.95:
        return "Windows-1252", "WINDOWS-1252"
    return None


def _decoded(sample: bytes, encoding: str) -> str | None:
    """Decode, but for a character that the sample cuts; None if it is not of that encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample, final=False)
    except UnicodeDecodeError:
        return None


def _share(text: str, holds: Callable[[str], bool]) -> float:
    return sum(map(holds, text)) / len(text)


def _kana_share(sample: bytes, codec: str) -> float:
    """Return the share of Hiragana and Katakana among the characters beyond ASCII, half-width ones counted against it.

    Every Japanese text has kana. Text of one of the encodings read as the other gives half-width kana and rare Kanji.
    """
    text = "".join(one for one in _decoded(sample, codec) or "" if not one.isascii())
    if not text:
        return 0.0
    return _share(text, lambda one: "\u3041" <= one <= "\u30fe") - _share(text, lambda one: "\uff61" <= one <= "\uff9f")


def _is_usual(character: str) -> bool:
    """Whether a character is of ASCII or of what every Japanese text has; of bytes read wrongly most become Kanji."""
    return character in "\r\n\t" or " " <= character <= "~" or "\u3000" <= character <= "\u30ff"
