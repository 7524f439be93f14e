"""Conversations are read in both forms, and a message with file and line for what is of neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake import chat_files
from ollamake.chat_files import read_chat
from ollamake.errors import OllamakeError

KEY = "models.m.quality.chat"
USER = {"role": "user", "content": "設計速度は？"}
ANSWER = {"role": "assistant", "content": "80km/hです。"}
GOOD = {"messages": [USER, ANSWER]}


def write(folder: Path, *lines: Any, end: str = "\n", mark: bytes = b"") -> Path:
    path = folder / "chat.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes(mark + "".join(text + end for text in texts).encode())
    return path


def test_both_forms_and_their_lines(tmp_path: Path) -> None:
    short = {"question": USER["content"], "answer": ANSWER["content"], "expect": "80"}
    for end, mark in (("\n", b""), ("\r\n", b"\xef\xbb\xbf")):
        read = list(read_chat(write(tmp_path, GOOD, "", short, "  ", end=end, mark=mark), KEY))
        assert [one.line for one in read] == [1, 3]
        assert all(list(one.messages) == [USER, ANSWER] for one in read)


def test_what_user_and_assistant_say_and_what_else_a_message_has(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "developer", "content": "D"},
        USER | {"name": "N"},
        ANSWER,
    ]
    (one,) = read_chat(write(tmp_path, {"messages": messages, "id": 5}), KEY)
    assert list(one.messages) == messages
    assert one.contents() == [USER["content"], ANSWER["content"]]


def test_lines_behind_the_bytes_allowed_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, GOOD, "{")
    line = len(json.dumps(GOOD, ensure_ascii=False).encode()) + 1
    assert len(list(read_chat(path, KEY, 1))) == 1
    assert len(list(read_chat(path, KEY, 2 * line))) == 2
    with pytest.raises(OllamakeError, match=":3: not JSON"):
        list(read_chat(path, KEY, 2 * line + 1))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON (Expecting property name"),
        ("question: a", "not JSON (Expecting value: line 1 column 1 (char 0)): found question: a"),
        ("[" * 100_000, "not JSON ("),
        ('[{"messages": []}]', 'found [{"messages": []}]'),
        ('"a"', 'found "a"'),
        ("5", "found 5"),
        ({}, "found an object with no keys"),
        ({"prompt": "a", "completion": "b"}, "found an object with 'prompt', 'completion', but neither `messages`"),
        ({"question": "a"}, "found an object with 'question', but neither"),
        ({"question": "a", "answer": " "}, "texts that are not empty"),
        ({"question": "a", "answer": 5}, "texts that are not empty"),
        ({"messages": []}, "a list that is not empty"),
        ({"messages": "hi"}, "a list that is not empty"),
        ({"messages": ["hi"]}, 'message 1 is "hi", without texts as role and content'),
        ({"messages": [USER, {"role": "assistant"}]}, 'message 2 is {"role": "assistant"}, without texts'),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 is"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}, "message 2 is"),
        ({"messages": [{"from": "human", "value": "x"}]}, 'message 1 is {"from": "human", "value": "x"}'),
        (
            {"messages": [USER]},
            "there is no answer: no message of the role `assistant` that is not empty (roles: user)",
        ),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "there is no answer"),
        ({"messages": [USER, {"role": "gpt", "content": "x"}]}, "(roles: user, gpt)"),
        ('{"question": "\\ud83d", "answer": "x"}', "message 1 has half of a character: the escape \\ud83d alone"),
        ('{"question": "a", "answer": "x\\u0000"}', "message 2 has the character of the number zero"),
    ],
)
def test_each_fault_is_told_with_its_line(tmp_path: Path, line: Any, words: str) -> None:
    path = write(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(OllamakeError) as error:
        list(read_chat(path, KEY))
    assert str(error.value).startswith(f"{KEY}: {path}:3: ") or f"{path}:3: " in str(error.value)
    assert words in str(error.value)


def test_an_escaped_pair_is_one_character(tmp_path: Path) -> None:
    (one,) = read_chat(write(tmp_path, '{"question": "\\ud83d\\ude42", "answer": "\\\\u0000"}'), KEY)
    assert one.contents() == ["🙂", "\\u0000"]


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_files, "LONGEST_LINE", 1 << 20)
    path = write(tmp_path, "[" + json.dumps(GOOD) * 40_000)
    with pytest.raises(OllamakeError, match=r":1: the line is longer than 1 MiB, beginning with \[\{\"messages\""):
        list(read_chat(path, KEY))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_conversations(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content)
    with pytest.raises(OllamakeError, match=r"chat\.jsonl has no conversations; expected one JSON object a line"):
        list(read_chat(path, KEY))


@pytest.mark.parametrize(("encoding", "name"), [("cp932", "Shift_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16")])
def test_another_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "chat.jsonl"
    ascii_line = '{"question": "a", "answer": "b"}\n'
    path.write_bytes((ascii_line + json.dumps(GOOD, ensure_ascii=False) + "\n").encode(encoding))
    with pytest.raises(OllamakeError, match=f"is not UTF-8 at byte .*it looks like {name}. Convert it: iconv -f"):
        list(read_chat(path, KEY))


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"PAR1\x15\x04\x00")
    with pytest.raises(OllamakeError, match="is a Parquet table, not a text file"):
        list(read_chat(path, KEY))
