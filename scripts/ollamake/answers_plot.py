"""The picture of answers: each question a line, each model a column, the base first; alike questions are one line."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from ollamake.plan_figures import one_line
from ollamake.plot_font import font_settings

Asked = Mapping[str, Mapping[str, Any]]

_FEW, _ALIKE = 30, 6
"""Up to so many questions each has a line; of more, so many that all models answered alike are one line."""
_WIDEST = 60
"""Columns of a terminal that a question may take: a Latin letter takes one, a Japanese one two."""
_ROW_HIGH, _COLUMN_WIDE, _QUESTIONS_WIDE, _ABOVE, _BELOW = 0.21, 0.62, 4.9, 1.0, 0.5
"""Inches."""
_LONGEST_LABEL, _LONGEST_NAME = 12, 48
_RIGHT, _WRONG = "#CFE3F1", "#7A2E00"
"""Light and dark, so that a copy in grey shows them; what they mean, the sign in the cell says too."""
_TICK = Outline([(-0.8, -0.05), (-0.25, -0.65), (0.85, 0.75)], [Outline.MOVETO, Outline.LINETO, Outline.LINETO])


@dataclass(frozen=True)
class Line:
    """A line of the picture: its text, who answered rightly, and for how many questions it stands."""

    text: str
    right: tuple[bool, ...]
    questions: int = 1


def draw_answers(model: str, asked: Asked) -> bytes:
    """Return the picture of what models answered as SVG; the same bytes for the same answers.

    ``asked``: label -> what ollamake.answers.ask returned, all of the same questions.
    """
    lines = answer_lines(asked)
    labels = [_cut(label, _LONGEST_LABEL) for label in _order(asked)]
    texts = [*(line.text for line in lines), *labels, _title(model), "…“”"]
    settings = {"svg.hashsalt": "ollamake", "font.size": 9, "text.parse_math": False, **font_settings(texts)}
    with mpl.rc_context(settings):
        figure = answers_figure(model, asked)
        output = io.BytesIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": "ollamake"})
    return output.getvalue()


def answer_lines(asked: Asked) -> list[Line]:
    """Return the lines of the picture: first the questions that models answered differently, then those that were alike.

    Of more than 30 questions those that all models answered in the same way become one line if they are 6 or more.
    """
    answers = [asked[label]["answers"] for label in _order(asked)]
    questions = [(one[0]["question"], tuple(answer["right"] for answer in one)) for one in zip(*answers, strict=True)]
    alike: dict[tuple[bool, ...], list[str]] = {}
    for text, right in questions:
        alike.setdefault(right, []).append(text)
    together = {right: texts for right, texts in alike.items() if len(questions) > _FEW and len(texts) >= _ALIKE}
    lines = [Line(_cut(text, _WIDEST), right) for text, right in questions if right not in together]
    for right, texts in sorted(together.items(), key=lambda item: -len(item[1])):
        head = f"{len(texts)} questions, as “"
        lines.append(Line(f"{head}{_cut(texts[0], _WIDEST - len(head) - 1)}”", right, len(texts)))
    return lines


def answers_figure(model: str, asked: Asked) -> Figure:
    """Return the picture as matplotlib's figure."""
    order, lines = _order(asked), answer_lines(asked)
    wide = max(_QUESTIONS_WIDE + _COLUMN_WIDE * len(order) + 0.15, 7.0)
    high = _ABOVE + _BELOW + _ROW_HIGH * len(lines)
    figure = Figure(figsize=(wide, high), dpi=72)
    axes = figure.add_axes(
        (_QUESTIONS_WIDE / wide, _BELOW / high, _COLUMN_WIDE * len(order) / wide, _ROW_HIGH * len(lines) / high)
    )
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    figure.text(0.1 / wide, 1 - 0.1 / high, _title(model), fontsize=11, fontweight="bold", va="top")
    for column, label in enumerate(order):
        _draw_column(axes, column, [line.right[column] for line in lines])
        _head_column(axes, column, label, asked[label])
    _name_lines(axes, lines)
    axes.set_axis_off()
    _explain(figure, wide, high)
    return figure


def _draw_column(axes: Axes, column: int, right: Sequence[bool]) -> None:
    """Draw a column's cells: one series of marks for each kind, so that the file stays small."""
    for kind, colour, sign, ink in ((True, _RIGHT, _TICK, "#00344F"), (False, _WRONG, "x", "white")):
        rows = [row for row, answer in enumerate(right) if answer is kind]
        if not rows:
            continue
        columns = [column] * len(rows)
        axes.plot(columns, rows, "s", color=colour, markersize=12.5, markeredgewidth=0, clip_on=False, zorder=2)
        axes.plot(
            columns, rows, linestyle="none", marker=sign, color=ink, fillstyle="none", markersize=6.5, markeredgewidth=1.5,
            clip_on=False, zorder=3,
        )  # fmt: skip


def _head_column(axes: Axes, column: int, label: str, answers: Mapping[str, Any]) -> None:
    heads = (
        (38, _cut(label, _LONGEST_LABEL), 8.5, "normal"),
        (23, f"{answers['score']:.0%}", 10, "bold"),
        (11, f"{answers['right']} of {answers['asked']}", 7.5, "normal"),
    )
    for above, text, size, weight in heads:
        width = len(text) * size * 0.6
        axes.annotate(
            text, (column, -0.5), xytext=(0, above), textcoords="offset points", ha="center", va="center",
            fontsize=min(size, size * _COLUMN_WIDE * 72 / max(width, 1)), fontweight=weight, annotation_clip=False,
        )  # fmt: skip


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for row, line in enumerate(lines):
        axes.annotate(
            line.text, (-0.5, row), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8.5,
            annotation_clip=False,
        )  # fmt: skip
    alone = sum(line.questions == 1 for line in lines)
    if 0 < alone < len(lines):
        wide = axes.get_xlim()[1] - axes.get_xlim()[0]
        start = axes.get_xlim()[0] - wide * (_QUESTIONS_WIDE - 0.15) / (_COLUMN_WIDE * wide)
        axes.plot(
            [start, axes.get_xlim()[1]], [alone - 0.5] * 2, color="#777777", linewidth=0.8, clip_on=False, zorder=1
        )  # fmt: skip


def _explain(figure: Figure, wide: float, high: float) -> None:
    """Say what the cells mean."""
    axes = figure.add_axes((0.1 / wide, 0.1 / high, 4.0 / wide, _ROW_HIGH / high))
    axes.set_xlim(0, 4.0 * 72)
    axes.set_ylim(0.5, -0.5)
    axes.set_axis_off()
    for left, right, text in ((10, True, "answered rightly"), (130, False, "answered wrongly")):
        _draw_column(axes, left, [right])
        axes.text(left + 12, 0, text, va="center", fontsize=8.5, color="#222222")


def _order(asked: Asked) -> list[str]:
    """Return the labels, the base first."""
    return sorted(asked, key=lambda label: label != "base")


def _title(model: str) -> str:
    return f"{_cut(model, _LONGEST_NAME)}: answers to your questions"


def _cut(text: str, columns: int) -> str:
    """Return a text in one line of so many columns at most."""
    text = one_line(text)
    if sum(map(_columns, text)) <= columns:
        return text
    kept, left = "", columns - 1
    for character in text:
        left -= _columns(character)
        if left < 0:
            break
        kept += character
    return f"{kept}…"


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
