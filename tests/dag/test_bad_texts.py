"""Texts, conversations and questions that are none: each is refused in one message with the key, the file and the line."""

from __future__ import annotations

import json

import pytest
from bad_inputs import Cases, Edit, each, refused, set_model, write
from campaigns import one_in
from dag_build import Build

pytestmark = pytest.mark.faults

QUESTION = json.dumps({"question": "道路とは?", "expect": "道"}, ensure_ascii=False)


def of(key: str, content: str | bytes) -> Edit:
    """Have a file with this content as the calibration's text or chat, or as the questions."""
    section, kind = key.split(".")
    value = "file.jsonl" if kind == "questions" else ["file.jsonl"]
    return each(write("file.jsonl", content), set_model(**{section: {kind: value}}))


CASES: Cases = {
    "text missing": (set_model(imatrix={"text": ["nowhere.txt"]}), ["models.small.imatrix.text: there is no file nowhere.txt"]),
    "a folder for a text": (set_model(imatrix={"text": ["base"]}), ["models.small.imatrix.text: there is no file base"]),
    "empty text": (of("imatrix.text", ""), ["models.small.imatrix.text", "file.jsonl is empty"]),
    "text of another encoding": (
        of("quality.text", "モデルのための文。\n".encode("cp932")),
        ["models.small.quality.text", "not UTF-8 at byte 0", "Shift_JIS", "iconv"],
    ),
    "a PDF for a text": (of("imatrix.text", b"%PDF-1.7\n\xff\x00"), ["models.small.imatrix.text", "a PDF document, not a text"]),
    "conversations of no JSON": (of("imatrix.chat", "question: what\n"), ["models.small.imatrix.chat", "file.jsonl:1"]),
    "conversations nested without end": (
        of("imatrix.chat", "[" * 200_000),
        ["models.small.imatrix.chat", "file.jsonl:1"],
    ),
    "conversations of a list": (of("imatrix.chat", "[1]\n"), ["models.small.imatrix.chat", "file.jsonl:1"]),
    "messages of numbers": (of("quality.chat", '{"messages": [1]}\n'), ["models.small.quality.chat", "file.jsonl:1"]),
    "questions missing": (
        set_model(answers={"questions": "nowhere.jsonl"}),
        ["models.small.answers.questions", "there is no file nowhere.jsonl"],
    ),
    "question without an answer": (
        of("answers.questions", f'{QUESTION}\n{{"question": "道路とは?"}}\n'),
        ["models.small.answers.questions", "line 2", "expect"],
    ),
    "question that expects a wrong pattern": (
        of("answers.questions", '{"question": "?", "expect": {"regex": "("}}\n'),
        ["models.small.answers.questions", "line 1", "is not a regular expression"],
    ),
    "no questions": (of("answers.questions", "\n"), ["models.small.answers.questions", "file.jsonl"]),
    "system prompt missing": (
        set_model(ollama={"system": {"file": "nowhere.txt"}}),
        ["models.small.ollama.system.file", "nowhere.txt"],
    ),
    "license that is not UTF-8": (
        each(write("license", b"\xff\xfe\xfd"), set_model(ollama={"license": [{"file": "license"}]})),
        ["models.small.ollama.license.file", "UTF-8"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", one_in(6, CASES))
def test_refused(fresh: Build, case: str) -> None:
    edit, words = CASES[case]
    edit(fresh)
    fresh.write_config()
    refused(fresh, words)
