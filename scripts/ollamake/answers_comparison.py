"""The answers of a model's quantizations side by side, each held to the share of right ones that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.plan_text import escaped
from ollamake.quality_figures import percent

Asked = Mapping[str, Mapping[str, Any]]

_WRONG_SHOWN, _LONGEST_ANSWER = 3, 200
"""Of a quantization that answers too little: wrong answers in answers.json, and characters of each."""


def compare(
    model: str, asked: Asked, judged: Sequence[str], min_score: float, limit_key: str, on_fail: str
) -> dict[str, Any]:
    """Return the content of answers.json: the scores of all that were asked, and who is below the limit by how much.

    ``asked``: label -> what ollamake.answers.ask returned; ``judged``: the labels of which ``min_score`` (0 to 1) is
    demanded; ``limit_key``: the key of the configuration that demands it; ``on_fail``: `stop` or `warn`. ``passes`` is None
    of those that are not judged.
    """
    scores = {
        label: {
            **{key: answers[key] for key in ("name", "right", "asked", "score")},
            "passes": answers["score"] >= min_score if label in judged else None,
        }
        for label, answers in asked.items()
    }
    return {
        "model": model,
        "min_score": min_score,
        "limit_key": limit_key,
        "on_fail": on_fail,
        "scores": scores,
        "failures": [
            {
                "label": label,
                "sentence": _too_few(label, score, min_score, limit_key),
                "wrong": _wrong_answers(asked[label]),
            }
            for label, score in scores.items()
            if score["passes"] is False
        ],
    }


def demanded(comparison: Mapping[str, Any]) -> str:
    """Return in a sentence which share of right answers which key asks for, and where too few are only said."""
    key = comparison["limit_key"]
    warns = f"; fewer are a warning ({key.rpartition('.')[0]}.on_fail)" if comparison["on_fail"] == "warn" else ""
    return f"{key} asks for {percent(comparison['min_score'])} right answers{warns}."


def table(comparison: Mapping[str, Any], asked: Asked) -> str:
    """Return the scores and what they are held to, and each question with who answered it rightly, as Markdown."""
    scores = comparison["scores"]
    lines = ["| model | in Ollama | right | of | share | |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for label, score in scores.items():
        verdict = {True: "passes", False: f"below {100 * comparison['min_score']:g}%", None: ""}[score["passes"]]
        figures = f"{score['right']} | {score['asked']} | {score['score']:.1%}"
        lines.append(f"| {label} | `{score['name']}` | {figures} | {verdict} |")
    lines += ["", escaped(demanded(comparison)), ""]
    lines += [f"- {escaped(failure['sentence'])}." for failure in comparison["failures"]]
    lines += [""] * bool(comparison["failures"])
    lines += [f"| question | {' | '.join(scores)} |", f"| --- |{' :-: |' * len(scores)}"]
    for rows in zip(*(answers["answers"] for answers in asked.values()), strict=True):
        marks = " | ".join("✓" if row["right"] else "✗" for row in rows)
        lines.append(f"| {_cell(rows[0]['question'])} | {marks} |")
    return "\n".join(lines) + "\n"


def _too_few(label: str, score: Mapping[str, Any], min_score: float, limit_key: str) -> str:
    """Return in a sentence without its full stop by how many right answers a score is too low."""
    right, asked = score["right"], score["asked"]
    needed = next(count for count in range(right, asked + 1) if count / asked >= min_score)
    return (
        f"{label}: {right} of {asked} questions answered rightly ({percent(score['score'])}); {limit_key} asks for"
        f" {percent(min_score)}: {needed - right} too few"
    )


def _wrong_answers(answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    wrong = [answer for answer in answers["answers"] if not answer["right"]][:_WRONG_SHOWN]
    return [
        {"question": one["question"], "expect": one["expect"], "answer": one["answer"][:_LONGEST_ANSWER]}
        for one in wrong
    ]


def _cell(text: str) -> str:
    """Return a text that fits a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
