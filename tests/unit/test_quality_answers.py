"""The picture of answers: the base first, alike questions together, right and wrong told by sign and shade, Japanese drawn."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from ollamake.answers_plot import Line, answer_lines, answers_figure, draw_answers
from ollamake.plot_font import font_settings

SVG = "{http://www.w3.org/2000/svg}"


def answered(right: Sequence[bool], texts: Sequence[str] | None = None) -> dict[str, Any]:
    questions = texts or [f"question {number}" for number in range(len(right))]
    return {
        "name": "m", "right": sum(right), "asked": len(right), "score": sum(right) / len(right),
        "answers": [{"question": text, "right": one} for text, one in zip(questions, right, strict=True)],
    }  # fmt: skip


def test_few_questions_have_a_line_each_and_the_base_comes_first() -> None:
    asked = {"Q8_0": answered([True] * 29 + [False]), "base": answered([False] * 30)}
    lines = answer_lines(asked)
    assert lines == [Line(f"question {number}", (False, number < 29)) for number in range(30)]


def test_of_many_those_that_were_answered_alike_are_one_line() -> None:
    right = [number not in (3, 7, 8) for number in range(70)]
    asked = {"base": answered([False] * 70), "Q8_0": answered([True] * 70), "Q4_K_M": answered(right)}
    assert answer_lines(asked) == [
        *(Line(f"question {number}", (False, True, False)) for number in (3, 7, 8)),
        Line("67 questions, as “question 0”", (False, True, True), 67),
    ]
    assert sum(line.questions for line in answer_lines(asked)) == 70


def test_every_question_is_counted_once() -> None:
    asked = {label: answered([(number * prime) % 7 > 2 for number in range(200)]) for label, prime in
             (("base", 2), ("Q8_0", 3), ("Q4_K_M", 5))}  # fmt: skip
    lines = answer_lines(asked)
    assert sum(line.questions for line in lines) == 200
    for column, label in enumerate(asked):
        assert sum(line.questions for line in lines if line.right[column]) == asked[label]["right"]


def test_long_questions_are_cut() -> None:
    texts = ["半径" * 50, "r" * 61, "r" * 60, "a\nb \x1b"]
    lines = answer_lines({"Q8_0": answered([True] * 4, texts)})
    assert [line.text for line in lines] == [
        "半径" * 14 + "半…",
        "r" * 59 + "…",
        "r" * 60,
        "a b \N{REPLACEMENT CHARACTER}",
    ]


def test_models_that_were_asked_different_questions() -> None:
    with pytest.raises(ValueError, match="zip"):
        answer_lines({"a": answered([True]), "b": answered([True, False])})


def test_the_svg() -> None:
    asked = {"Q8_0": answered([True] * 6 + [False]), "base": answered([False] * 7)}
    picture = draw_answers("m <x>", asked)
    assert picture == draw_answers("m <x>", asked)
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert "m <x>: answers to your questions" in texts
    assert texts.index("base") < texts.index("Q8_0")
    assert {"0%", "0 of 7", "86%", "6 of 7", "answered rightly", "answered wrongly"} <= set(texts)
    assert [text for text in texts if text.startswith("question")] == [f"question {number}" for number in range(7)]


def test_a_cell_is_told_by_sign_and_by_shade() -> None:
    right = [True, False, True]
    figure = answers_figure("m", {"Q8_0": answered(right)})
    cells: dict[int, list[Any]] = {}
    for line in figure.axes[0].lines:
        for row in map(int, line.get_ydata()):
            cells.setdefault(row, []).append(line)
    signs = {row: [line.get_marker() for line in lines][1] for row, lines in cells.items()}
    assert [signs[row] == "x" for row in range(3)] == [not one for one in right]
    grey = {row: sum(to_rgb(lines[0].get_color())) / 3 for row, lines in cells.items()}
    assert [grey[row] > 0.75 for row in range(3)] == right
    assert [grey[row] < 0.35 for row in range(3)] == [not one for one in right]


def many(count: int) -> dict[str, Any]:
    texts = [f"第{number}号機の点検周期は何時間ですか。定期保守の記録を含めて答えてください" for number in range(count)]
    return {
        "base": answered([False] * count, texts),
        **{kind: answered([number * prime % 11 > wrong for number in range(count)], texts) for kind, prime, wrong in
           (("Q8_0", 3, 0), ("Q6_K", 4, 1), ("Q4_K_M", 5, 3), ("Q2_K", 7, 6))},
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 30, 70, 200])
def test_japanese_questions(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_answers("保守", many(count))
    assert len(picture) < 500_000
    root = ElementTree.fromstring(picture)
    assert not list(root.iter(f"{SVG}text"))
    assert not re.search(rb'xlink:href="#[A-Za-z]+-0"', picture), ".notdef"
    assert b"IPAexGothic" in picture


@pytest.mark.parametrize("count", [1, 30, 200])
def test_no_text_covers_another_or_leaves_the_picture(count: int) -> None:
    asked = many(count) | {"unquantized": many(count)["Q8_0"], "a label as long as it gets": many(count)["Q6_K"]}
    with mpl.rc_context({"font.size": 9, "text.parse_math": False, **font_settings(["保守"])}):
        figure = answers_figure("保守" * 40, asked)
        renderer = FigureCanvasAgg(figure).get_renderer()
        texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        boxes = [text.get_window_extent(renderer) for text in texts]
    for number, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, texts[number].get_text()
        assert box.x1 <= figure.bbox.x1, texts[number].get_text()
        assert box.y1 <= figure.bbox.y1, texts[number].get_text()
        for other in boxes[number + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 0.5 or height <= 0.5, texts[number].get_text()
