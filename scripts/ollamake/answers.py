"""What registered models answer to the user's questions: asked, scored, compared in a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.ollama_server import OllamaServer
from ollamake.progress import progress_bar
from ollamake.questions import Question

log = logging.getLogger("ollamake")


def ask(server: OllamaServer, name: str, questions: Sequence[Question], max_tokens: int) -> dict[str, Any]:
    """Ask a registered model every question and return its answers, each with whether it is right.

    Temperature 0 and a fixed seed, so that the same model gives the same answers; all else is as registered.
    """
    options = {"temperature": 0, "seed": 1, "num_predict": max_tokens}
    answers: list[dict[str, Any]] = []
    with progress_bar(len(questions), f"asking {name}", unit=" questions") as progress:
        for question in questions:
            answer = server.answer(name, list(question.messages), options)
            answers.append(
                {
                    "question": question.messages[-1]["content"],
                    "expect": {"regex": question.regex} if question.regex is not None else list(question.any_of),
                    "answer": answer,
                    "right": question.is_answered_by(answer),
                }
            )
            progress.update()
    right = sum(answer["right"] for answer in answers)
    log.info("%s: %d of %d right", name, right, len(answers))
    return {"name": name, "right": right, "asked": len(answers), "score": right / len(answers), "answers": answers}


def compare(asked: Mapping[str, Mapping[str, Any]], judged: Sequence[str], min_score: float) -> dict[str, Any]:
    """Return the scores of all that were asked, as they stand in answers.json.

    ``asked``: label -> what ask returned; ``judged``: the labels of which ``min_score`` is demanded.
    """
    return {
        "min_score": min_score,
        "scores": {
            label: {
                **{key: answers[key] for key in ("name", "right", "asked", "score")},
                "passes": answers["score"] >= min_score if label in judged else None,
            }
            for label, answers in asked.items()
        },
    }


def table(comparison: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores, and each question with who answered it rightly, as Markdown."""
    scores = comparison["scores"]
    lines = ["| model | in Ollama | right | of | share | |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for label, score in scores.items():
        verdict = {True: "passes", False: f"below {comparison['min_score']:.0%}", None: ""}[score["passes"]]
        figures = f"{score['right']} | {score['asked']} | {score['score']:.1%}"
        lines.append(f"| {label} | `{score['name']}` | {figures} | {verdict} |")
    lines += ["", f"| question | {' | '.join(scores)} |", f"| --- |{' :-: |' * len(scores)}"]
    for rows in zip(*(answers["answers"] for answers in asked.values()), strict=True):
        marks = " | ".join("✓" if row["right"] else "✗" for row in rows)
        lines.append(f"| {_cell(rows[0]['question'])} | {marks} |")
    return "\n".join(lines) + "\n"


def refuse_low_scores(comparison: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]], key: str) -> None:
    """Raise OllamakeError if a quantization answers too little, with the first wrong answers of the worst."""
    low = {label: score for label, score in comparison["scores"].items() if score["passes"] is False}
    if not low:
        return
    worst = min(low, key=lambda label: low[label]["score"])
    wrong = [answer for answer in asked[worst]["answers"] if not answer["right"]][:3]
    shown = "".join(
        f"\n  {answer['question']!r}\n    expected {answer['expect']}, answered {answer['answer'][:200]!r}"
        for answer in wrong
    )
    names = ", ".join(f"{label} {score['score']:.1%}" for label, score in low.items())
    raise OllamakeError(
        f"right answers: {names}; {key}.min_score asks for {comparison['min_score']:.0%}. The models stay registered; all answers"
        f" are in results/*/ollama/*/answers.*.json. Wrong answers of {worst}:{shown}\n"
        "Try a larger quantization, look at the answers, or lower min_score."
    )


def _cell(text: str) -> str:
    """Return a text that fits a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
