"""The user's questions: every form that is taken, and a message with the line for each that is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.errors import OllamakeError
from ollamake.questions import Question, read_questions

USER = {"role": "user", "content": "設計速度は？"}


def write(folder: Path, *lines: Any, end: str = "\n") -> Path:
    path = folder / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("".join(text + end for text in texts).encode())
    return path


@pytest.mark.parametrize(
    ("expect", "question"),
    [
        ("80", Question((USER,), ("80",))),
        ({"text": "80"}, Question((USER,), ("80",))),
        ({"any_of": ["80", "八十"]}, Question((USER,), ("80", "八十"))),
        ({"regex": r"\b80 ?km"}, Question((USER,), (), r"\b80 ?km")),
    ],
)
def test_each_form_of_an_expectation(tmp_path: Path, expect: Any, question: Question) -> None:
    assert read_questions(write(tmp_path, {"messages": [USER], "expect": expect})) == [question]
    assert read_questions(write(tmp_path, {"question": USER["content"], "expect": expect})) == [question]


def test_a_conversation_of_several_turns(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "S"},
        USER,
        {"role": "assistant", "content": "80"},
        {"role": "user", "content": "?"},
    ]
    (question,) = read_questions(write(tmp_path, {"messages": messages, "expect": "x"}))
    assert list(question.messages) == messages


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (Question((), ("280m",)), ["280m", "半径は280mです。"], ["", "280 m", "280M"]),
        (Question((), ("a", "b")), ["xa", "bx"], ["x", "A"]),
        (Question((), (), r"^\d+\s?m$"), ["280m", "1 m"], ["280", "about 280m", ""]),
        (Question((), (), "a.c"), ["abc"], ["a\nc"]),
    ],
)
def test_which_answers_are_right(question: Question, right: list[str], wrong: list[str]) -> None:
    assert all(question.is_answered_by(answer) for answer in right)
    assert not any(question.is_answered_by(answer) for answer in wrong)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_only_line_feeds_end_a_line(tmp_path: Path, character: str) -> None:
    content = f"one{character}two"
    line = json.dumps({"question": content, "expect": "x"}, ensure_ascii=False)
    questions = read_questions(write(tmp_path, line, "", line))
    assert [question.messages[0]["content"] for question in questions] == [content] * 2


def test_empty_lines_are_passed_over_and_crlf_ends_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "", {"question": "a", "expect": "x"}, "  \t", {"question": "b", "expect": "y"}, end="\r\n")
    assert [question.messages[0]["content"] for question in read_questions(path)] == ["a", "b"]
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
    assert len(read_questions(path)) == 2


GOOD = {"question": "a", "expect": "x"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Expecting property name"),
        ("question: a", "Expecting value"),
        ('["a"]', r'found \["a"\]'),
        ('"a"', 'found "a"'),
        ({"expect": "x"}, "`messages` is missing"),
        ({"question": 5, "expect": "x"}, "`messages` is missing"),
        ({"messages": [], "expect": "x"}, "`messages` is missing"),
        ({"messages": "hi", "expect": "x"}, "not a list of role and content"),
        ({"messages": ["hi"], "expect": "x"}, "not a list of role and content"),
        ({"messages": [{"role": "user"}], "expect": "x"}, "not a list of role and content"),
        ({"messages": [{"role": "user", "content": 5}], "expect": "x"}, "not a list of role and content"),
        ({"question": "a"}, "`expect` is None"),
        ({"question": "a", "expect": ""}, "`expect` is ''"),
        ({"question": "a", "expect": 80}, "`expect` is 80"),
        ({"question": "a", "expect": ["x"]}, r"`expect` is \['x'\]"),
        ({"question": "a", "expect": {}}, r"`expect` is \{\}"),
        ({"question": "a", "expect": {"text": ""}}, "`expect` is"),
        ({"question": "a", "expect": {"any_of": []}}, "`expect` is"),
        ({"question": "a", "expect": {"any_of": ["x", ""]}}, "`expect` is"),
        ({"question": "a", "expect": {"any_of": ["x", 5]}}, "`expect` is"),
        ({"question": "a", "expect": {"any_of": "x"}}, "`expect` is"),
        ({"question": "a", "expect": {"regex": ""}}, "`expect` is"),
        ({"question": "a", "expect": {"regex": "x", "text": "y"}}, "`expect` is"),
        ({"question": "a", "expect": {"regexp": "x"}}, "`expect` is"),
        ({"question": "a", "expect": {"regex": "(x"}}, r"the pattern '\(x' is not a regular expression: missing \)"),
    ],
)
def test_each_fault_is_told_with_its_line(tmp_path: Path, line: Any, words: str) -> None:
    path = write(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(OllamakeError, match=rf"^models\.m\.answers\.questions: {path}, line 3: .*{words}"):
        read_questions(path, "models.m.answers.questions")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_questions(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(OllamakeError, match=r"questions\.jsonl has no questions; expected one JSON object a line"):
        read_questions(path)


@pytest.mark.parametrize("content", [b"\xff", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OllamakeError, match=r"^key: .*questions\.jsonl cannot be read as UTF-8 text"):
        read_questions(path, "key")
