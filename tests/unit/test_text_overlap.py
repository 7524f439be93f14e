"""How much of a text stands in another is counted as by a plain comparison of sentences, and refused above 5 %."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import check_overlap
from ollamake import text_overlap as module
from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record
from ollamake.text_checks import check_texts
from ollamake.text_overlap import Overlap, Source, refuse_same_files, sources, text_overlap

MINE, OTHER = "models.m.quality", "models.m.imatrix"
SENTENCES = [
    "The design speed of this road is eighty.",
    "Its radius is at least 280 metres, no less.",
    "設計速度は時速八十キロです。",
    "最小曲線半径は二百八十メートルです。",
    "Short one.",
    "はい。",
]


def text(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def chat(folder: Path, name: str, *conversations: Sequence[tuple[str, str]]) -> Path:
    lines = [
        json.dumps({"messages": [{"role": role, "content": content} for role, content in one]}, ensure_ascii=False)
        for one in conversations
    ]
    return text(folder, name, "\n".join(lines))


def overlap(mine: Sequence[Path], others: Sequence[Path]) -> Overlap:
    def split(key: str, files: Sequence[Path]) -> list[Source]:
        chats = [file for file in files if file.suffix == ".jsonl"]
        return sources(key, [file for file in files if file not in chats], chats)

    return text_overlap(split(MINE, mine), split(OTHER, others))


def test_nothing_in_common(tmp_path: Path) -> None:
    mine, other = text(tmp_path, "a.txt", SENTENCES[0] * 3), text(tmp_path, "b.txt", SENTENCES[1] * 3)
    assert overlap([mine], [other]) == Overlap(0.0)


def test_share_sentence_and_files(tmp_path: Path) -> None:
    mine = [text(tmp_path, "a.txt", "Something else that is long.\n"), text(tmp_path, "b.txt", SENTENCES[0])]
    others = [text(tmp_path, "c.txt", "Nothing.\n"), text(tmp_path, "d.txt", f"x\n{SENTENCES[0]}\ny")]
    found = overlap(mine, others)
    assert found.share == pytest.approx(40 / (28 + 40))
    assert (found.sentence, found.file, found.other_file) == (SENTENCES[0].casefold(), mine[1], others[1])


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("The design speed is 80.", "THE DESIGN   SPEED\tis 80.", True),
        ("The design speed is 80.", "The design speed is 81.", False),
        ("設計速度は８０ｋｍです。", "設計速度は80kmです。", True),
        ("カーブの最小半径はいくつか", "ｶｰﾌﾞの最小半径はいくつか", True),
        ("Fifteen letters", "Fifteen letters", False),
        ("Sixteen letters.", "Sixteen letters.", True),
        ("九文字のみの文です", "九文字のみの文です", False),
        ("全部で十文字の文です", "全部で十文字の文です", True),
        ("Die Länge der Straße ist groß", "DIE LÄNGE DER STRASSE IST GROSS", True),
        ("One that is long enough? Yes", "Another! One that is long enough? No", True),
        ("長い文の一つ目がここです！次", "前の文。長い文の一つ目がここです！別", True),
        ("Version 1.5 of example.com is out", "Version 1.\n5 of example.com is out", False),
    ],
)
def test_what_counts_as_the_same_sentence(tmp_path: Path, one: str, other: str, equal: bool) -> None:
    found = overlap([text(tmp_path, "a.txt", one)], [text(tmp_path, "b.txt", other)])
    assert (found.share > 0) is equal


def test_of_chats_what_is_said_counts_and_no_system_prompt(tmp_path: Path) -> None:
    prompt = ("system", "You are an expert for the design of roads.")
    mine = chat(tmp_path, "a.jsonl", [prompt, ("user", "One question?"), ("assistant", SENTENCES[0])])
    other = chat(tmp_path, "b.jsonl", [prompt, ("user", "Another one?"), ("assistant", SENTENCES[1])])
    assert overlap([mine], [other]).share == 0
    plain = text(tmp_path, "c.txt", f"{prompt[1]}\nAs said: x.\n{SENTENCES[0]}")
    found = overlap([mine], [other, plain])
    assert found.share == pytest.approx(40 / (13 + 40))
    assert (found.file, found.other_file) == (mine, plain)


@settings(max_examples=150, deadline=None)
@given(
    mine=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=12),
    other=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4),
    block=st.integers(1, 5),
    size=st.integers(1, 40),
)
def test_the_share_is_that_of_a_plain_comparison(
    tmp_path_factory: pytest.TempPathFactory, mine: list[str], other: list[str], block: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("overlap")
    files = [text(folder, "a.txt", "\n".join(mine))], [text(folder, "b.txt", "\n".join(other))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_OF_SENTENCES", block)
        patch.setattr("ollamake.text_files.BLOCK", size)
        found = overlap(*files)
    same = sum(len(one) for one in mine if one in other and one in SENTENCES[:4])
    assert found.share == pytest.approx(same / sum(map(len, mine)))


def test_a_long_text_without_line_ends_is_compared_in_little_memory(tmp_path: Path) -> None:
    files = []
    for name in ("a.txt", "b.txt"):
        files.append(tmp_path / name)
        with files[-1].open("w", encoding="utf-8") as file:
            for number in range(60):
                file.write(f"{name} {number}, " * 5000)
    assert sum(file.stat().st_size for file in files) > 5e6
    tracemalloc.start()
    found = overlap(files[:1], files[1:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.share == 0
    assert peak < 7e6


def test_the_same_file_and_a_copy_of_it(tmp_path: Path) -> None:
    one, copy = text(tmp_path, "a.txt", SENTENCES[0]), text(tmp_path, "copy.txt", SENTENCES[0])
    link = tmp_path / "link.txt"
    link.symlink_to(one)
    same_length = text(tmp_path, "d.txt", SENTENCES[0][::-1])
    for other, words in ((one, "the file"), (link, "the file"), (copy, "are equal")):
        with pytest.raises(
            OllamakeError, match=rf"^models\.m\.quality\.text: .*{words}.* given in models\.m\.imatrix\.text"
        ):
            refuse_same_files(sources(MINE, [one], []), sources(OTHER, [same_length, other], []))
    refuse_same_files(sources(MINE, [one], []), sources(OTHER, [same_length], []))


def test_the_early_check(tmp_path: Path) -> None:
    good = text(tmp_path, "a.txt", SENTENCES[0])
    other = text(tmp_path, "b.txt", SENTENCES[1])
    talk = chat(tmp_path, "c.jsonl", [("user", "?"), ("assistant", SENTENCES[2])])
    check_texts(MINE, [], [])
    check_texts(MINE, [good], [talk])
    check_texts(MINE, [good], [talk], OTHER, [other], [])
    twice = text(tmp_path, "d.txt", f"{SENTENCES[1]}\n{SENTENCES[0]}")
    with pytest.raises(OllamakeError) as error:
        check_texts(MINE, [good], [talk], OTHER, [other, twice], [])
    share = 100 * len(SENTENCES[0]) / (len(SENTENCES[0]) + 1 + len(SENTENCES[2]))
    assert str(error.value).startswith(
        f"models.m.quality.text: {share:.3g} % of the text (characters, by sentences) also stand in that of"
        f" models.m.imatrix.text; the first sentence is «{SENTENCES[0].casefold()}» in {good} and {twice}."
    )
    with pytest.raises(
        OllamakeError, match=r"^models\.m\.quality\.text: the file .* given in models\.m\.imatrix\.text"
    ):
        check_texts(MINE, [good], [], OTHER, [good], [])


def test_the_early_check_lets_a_little_pass(tmp_path: Path) -> None:
    lines = [f"This is the line with the number {number}." for number in range(100)]
    mine = text(tmp_path, "a.txt", "\n".join(lines))
    few, many = text(tmp_path, "b.txt", "\n".join(lines[:5])), text(tmp_path, "c.txt", "\n".join(lines[:6]))
    check_texts(MINE, [mine], [], OTHER, [few], [])
    with pytest.raises(OllamakeError, match="at most 5 % may be in both"):
        check_texts(MINE, [mine], [], OTHER, [many], [])


def test_the_script_says_how_much_was_calibrated_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What passes is told by a sentence for the summary; which sentences of the texts it is stands in the log."""
    lines = [f"This is the line with the number {number:03}." for number in range(100)]
    mine = text(tmp_path, "a.txt", "\n".join(lines))

    def found(other: str) -> dict[str, object]:
        files = ["--evaluation-text", str(mine), "--calibration-text", str(text(tmp_path, "b.txt", other))]
        output = tmp_path / "overlap.json"
        check_overlap.main(["--model", "m", *files, "--output", str(output)])
        return read_record(output)  # type: ignore[no-any-return]

    assert found("Nothing of it.") == {"share": 0.0, "sentence": "", "warnings": []}
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    (warning,) = found("\n".join(lines[:3]))["warnings"]  # type: ignore[misc]
    assert warning == (
        "3 % of the text that was measured on (characters, by sentences) was calibrated on, too: the figures of types that are"
        " made with the importance matrix may look a little better than they are."
    )
    assert f"«{lines[0].casefold()}» in {mine}" in caplog.messages[-1]
    with pytest.raises(OllamakeError, match="at most 5 % may be in both"):
        found("\n".join(lines[:6]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", None, r"quality\.text: .*a\.txt does not exist"),
        ("a.txt", b"", r"quality\.text: .*a\.txt is empty"),
        ("a.txt", "道路設計のことです。".encode("cp932"), r"quality\.text: .*a\.txt is not UTF-8 at byte 0"),
        ("a.jsonl", None, r"quality\.chat: .*a\.jsonl does not exist"),
        ("a.jsonl", b"{}\n", r"quality\.chat: .*a\.jsonl:1: found an object with no keys"),
    ],
)
def test_the_early_check_finds_faults_of_either_text(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    texts, chats = ([path], []) if name == "a.txt" else ([], [path])
    with pytest.raises(OllamakeError, match=rf"^models\.m\.{words}"):
        check_texts(MINE, texts, chats)
    good = text(tmp_path, "good.txt", SENTENCES[0])
    with pytest.raises(OllamakeError, match=rf"^models\.m\.{words}"):
        check_texts(OTHER, [good], [], MINE, texts, chats)


def test_the_early_check_reads_the_beginning_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollamake.text_checks.MAX_BYTES", 100)
    check_texts(MINE, [text(tmp_path, "a.txt", "x" * 98)], [])
    path = tmp_path / "b.txt"
    path.write_bytes(b"x" * 100 + b"\xff")
    check_texts(MINE, [path], [])
    path.write_bytes(b"x" * 99 + b"\xff")
    with pytest.raises(OllamakeError, match="at byte 99"):
        check_texts(MINE, [path], [])
