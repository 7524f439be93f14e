"""Plain text files are read as they are, or refused with the place, the likely encoding and the command that converts them."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollamake import text_files
from ollamake.errors import OllamakeError
from ollamake.text_files import read_text

KEY = "models.m.quality.text"
JAPANESE = (
    "設計速度80km/hの道路では、最小曲線半径は280mです。\nこの値は道路構造令に定められています。カーブの例も示す。\n"
    * 20
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "a.txt"
    path.write_bytes(content)
    return path


def read(path: Path, max_bytes: int | None = None) -> str:
    return "".join(read_text(path, KEY, max_bytes))


def fault(path: Path) -> str:
    with pytest.raises(OllamakeError) as error:
        read(path)
    assert str(error.value).startswith(f"{KEY}: {path} ")
    return str(error.value)


@settings(max_examples=300)
@given(
    text=st.lists(st.sampled_from(["a", "\r", "\n", "\r\n", "道", "🙂", "\ufeff", "\u2028", "é", " "]), max_size=30),
    block=st.integers(1, 9),
    mark=st.booleans(),
)
def test_a_text_is_read_alike_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], block: int, mark: bool
) -> None:
    whole = "x" + "".join(text)
    path = write(tmp_path_factory.mktemp("read"), (b"\xef\xbb\xbf" if mark else b"") + whole.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", max(block, 4) if mark else block)
        assert read(path) == whole.replace("\r\n", "\n")


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "道路".encode() + b"\xff" * 10)
    assert read(path, 5) == "道"
    assert read(path, 6) == "道路"
    with pytest.raises(OllamakeError, match="at byte 6 "):
        read(path, 7)


def test_white_space_is_refused_only_if_it_is_all_there_is(tmp_path: Path) -> None:
    assert "has nothing but white space" in fault(write(tmp_path, " \r\n\t　\n".encode()))
    assert "is empty" in fault(write(tmp_path, b""))
    assert "has nothing but white space" in fault(write(tmp_path, b"\xef\xbb\xbf"))
    path = write(tmp_path, b"\n" * 10 + b"text")
    assert read(path) == "\n" * 10 + "text"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "does not exist (looked from" in fault(tmp_path / "missing.txt")
    assert "is a folder, not a file" in fault(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("cp932", "Shift_JIS"),
        ("shift_jis", "Shift_JIS"),
        ("euc_jp", "EUC-JP"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("iso2022_jp", "ISO-2022-JP"),
    ],
)
def test_japanese_in_another_encoding_is_told_and_the_command_converts_it(
    tmp_path: Path, encoding: str, name: str
) -> None:
    message = fault(write(tmp_path, ("Road design\n" + JAPANESE).encode(encoding)))
    assert f"looks like {name}. Convert it: iconv -f " in message
    command = message.partition("Convert it: ")[2]
    assert shutil.which("iconv")
    subprocess.run(command, shell=True, check=True)
    assert read(tmp_path / "a.utf8.txt").removeprefix("\ufeff") == "Road design\n" + JAPANESE


@pytest.mark.parametrize("begin", [0, 1, 2, 3])
@pytest.mark.parametrize(("encoding", "name"), [("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP")])
def test_the_encoding_is_told_far_behind_in_the_file(tmp_path: Path, encoding: str, name: str, begin: int) -> None:
    ascii_lines = b"x" * begin + b"plain ASCII\n" * 100_000
    message = fault(write(tmp_path, ascii_lines + JAPANESE.encode(encoding)))
    first = JAPANESE.encode(encoding)[0]
    assert f"at byte {len(ascii_lines)} (0x{first:02X}, in line 100001); it looks like {name}." in message


def test_western_text(tmp_path: Path) -> None:
    message = fault(write(tmp_path, "Über die Größe der Straße, à propos.\n".encode("cp1252")))
    assert "at byte 0 (0xDC, in line 1); it looks like Windows-1252" in message
    assert "iconv -f WINDOWS-1252 -t UTF-8" in message


@pytest.mark.parametrize("at", [0, 7, text_files.BLOCK - 1, text_files.BLOCK, text_files.BLOCK + 5])
def test_a_damaged_byte_is_named_wherever_it_is(tmp_path: Path, at: int) -> None:
    message = fault(write(tmp_path, b"a" * at + b"\xff\x81" + "道".encode() * 100))
    assert f"is not UTF-8 at byte {at} (0xFF, in line 1), and its encoding cannot be told" in message


def test_a_character_that_is_cut_off_at_the_end(tmp_path: Path) -> None:
    assert "at byte 3 (0xE9, in line 2)" in fault(write(tmp_path, b"ab\n" + "道".encode()[:2]))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"text\n\x00\x01\x02\x03more" * 9, "is a binary file: byte 5 (0x00, in line 2) is zero"),
        (
            b"a" * text_files.BLOCK + b"\n\x00",
            f"is a binary file: byte {text_files.BLOCK + 1} (0x00, in line 2) is zero",
        ),
        (gzip.compress(JAPANESE.encode()), "is compressed with gzip, not a text file"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF document, not a text file"),
        (b"PK\x03\x04\x14\x00\x06\x00", "is a ZIP archive"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, what: str) -> None:
    assert what in fault(write(tmp_path, content))


@settings(max_examples=200)
@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_read_as_python_does_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("bytes"), content)
    try:
        expected = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        expected = None
    if expected is None or not expected.strip() or "\x00" in expected or b"\x1b$" in content:
        with pytest.raises(OllamakeError):
            read(path)
    else:
        assert read(path) == expected
