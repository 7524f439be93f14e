"""What registered models answer to the user's questions: asked, and held to what was expected."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

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
