"""Answers are asked for in the same way each time, scored, compared, and refused where they know too little."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

import check_answers
from ollamake.answers import ask, compare, refuse_low_scores, table
from ollamake.answers_plot import draw_answers
from ollamake.errors import OllamakeError
from ollamake.ollama_server import OllamaServer
from ollamake.questions import Question


class ServerStandIn:
    """Answers by the last message; stands in for OllamaServer."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, list[dict[str, str]], dict[str, Any]]] = []

    def answer(self, name: str, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
        self.asked.append((name, messages, options))
        return self.answers[messages[-1]["content"]]


def question(text: str, *any_of: str, regex: str | None = None) -> Question:
    return Question(({"role": "system", "content": "S"}, {"role": "user", "content": text}), any_of, regex)


def test_every_question_is_asked_in_the_same_way_and_scored() -> None:
    server = ServerStandIn({"a": "the 80 ", "b": "no", "c": "x"})
    questions = [question("a", "80"), question("b", "90", "100"), question("c", regex="^x$")]
    found = ask(cast(OllamaServer, server), "m:q8_0", questions, 99)
    options = {"temperature": 0, "seed": 1, "num_predict": 99}
    assert server.asked == [("m:q8_0", list(one.messages), options) for one in questions]
    assert found == {
        "name": "m:q8_0",
        "right": 2,
        "asked": 3,
        "score": 2 / 3,
        "answers": [
            {"question": "a", "expect": ["80"], "answer": "the 80 ", "right": True},
            {"question": "b", "expect": ["90", "100"], "answer": "no", "right": False},
            {"question": "c", "expect": {"regex": "^x$"}, "answer": "x", "right": True},
        ],
    }


def answered(name: str, *right: bool, texts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what ``ask`` returns of a model that answers so."""
    answers = [
        {
            "question": texts[number] if texts else f"question {number}",
            "expect": ["yes"],
            "answer": "yes" if one else "n" * 300,
            "right": one,
        }
        for number, one in enumerate(right)
    ]
    return {
        "name": name,
        "right": sum(right),
        "asked": len(right),
        "score": sum(right) / len(right),
        "answers": answers,
    }


ASKED = {
    "base": answered("m-base:q8_0", False, False, False, False, False),
    "fine-tune": answered("m:f16", True, True, True, True, True),
    "Q8_0": answered("m:q8_0", True, True, True, True, False),
    "Q4_K_M": answered("m:q4_k_m", True, False, False, False, False),
}


def test_a_score_is_asked_of_the_judged_alone() -> None:
    assert compare(ASKED, ["Q8_0", "Q4_K_M"], 0.8) == {
        "min_score": 0.8,
        "scores": {
            "base": {"name": "m-base:q8_0", "right": 0, "asked": 5, "score": 0.0, "passes": None},
            "fine-tune": {"name": "m:f16", "right": 5, "asked": 5, "score": 1.0, "passes": None},
            "Q8_0": {"name": "m:q8_0", "right": 4, "asked": 5, "score": 0.8, "passes": True},
            "Q4_K_M": {"name": "m:q4_k_m", "right": 1, "asked": 5, "score": 0.2, "passes": False},
        },
    }


def test_the_table() -> None:
    texts = ("a | b", "two\nlines", "  半径は？ ")
    asked = {
        "base": answered("m-base:q8_0", False, False, False, texts=texts),
        "Q8_0": answered("m:q8_0", True, True, False, texts=texts),
        "Q2_K": answered("m:q2_k", False, True, False, texts=texts),
    }
    assert table(compare(asked, ["Q8_0", "Q2_K"], 0.6), asked) == (
        "| model | in Ollama | right | of | share | |\n"
        "| --- | --- | ---: | ---: | ---: | --- |\n"
        "| base | `m-base:q8_0` | 0 | 3 | 0.0% |  |\n"
        "| Q8_0 | `m:q8_0` | 2 | 3 | 66.7% | passes |\n"
        "| Q2_K | `m:q2_k` | 1 | 3 | 33.3% | below 60% |\n"
        "\n"
        "| question | base | Q8_0 | Q2_K |\n"
        "| --- | :-: | :-: | :-: |\n"
        "| a \\| b | ✗ | ✓ | ✗ |\n"
        "| two lines | ✗ | ✓ | ✓ |\n"
        "| 半径は？ | ✗ | ✗ | ✗ |\n"
    )


def test_models_that_were_asked_different_questions_are_not_compared() -> None:
    asked = {"a": answered("a", True), "b": answered("b", True, False)}
    with pytest.raises(ValueError, match="zip"):
        table(compare(asked, [], 0), asked)


def test_enough_right_answers_are_not_refused() -> None:
    refuse_low_scores(compare(ASKED, ["Q8_0"], 0.8), ASKED, "models.m.answers")
    refuse_low_scores(compare(ASKED, [], 1.0), ASKED, "models.m.answers")


def test_too_few_right_answers_are_refused_with_wrong_ones_of_the_worst() -> None:
    with pytest.raises(OllamakeError) as caught:
        refuse_low_scores(compare(ASKED, ["Q8_0", "Q4_K_M"], 0.9), ASKED, "models.m.answers")
    message = str(caught.value)
    assert message.startswith("right answers: Q8_0 80.0%, Q4_K_M 20.0%; models.m.answers.min_score asks for 90%.")
    assert "Wrong answers of Q4_K_M:" in message
    shown = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    # Three of the four wrong ones, each cut to 200 characters.
    wrong = [(f"'question {number}'", f"expected ['yes'], answered '{'n' * 200}'") for number in (1, 2, 3)]
    assert shown == [line for pair in wrong for line in pair]


def run_script(folder: Path, min_score: str, *more: str) -> None:
    for label, answers in ASKED.items():
        (folder / f"{label}=.json").write_text(json.dumps(answers), encoding="utf-8")
    check_answers.main(
        [
            *("--model", "m", "--min-score", min_score, "--judged", "Q8_0", "Q4_K_M"),
            *("--answers", *(f"{label}={folder}/{label}=.json" for label in ASKED)),
            *("--table", str(folder / "answers.md"), "--output", str(folder / "answers.json"), *more),
        ]
    )


def test_the_script_writes_scores_and_table(tmp_path: Path) -> None:
    run_script(tmp_path, "0.2")
    comparison = compare(ASKED, ["Q8_0", "Q4_K_M"], 0.2)
    assert json.loads((tmp_path / "answers.json").read_text(encoding="utf-8")) == comparison
    assert (tmp_path / "answers.md").read_text(encoding="utf-8") == table(comparison, ASKED)


def test_the_script_draws_the_picture_if_asked(tmp_path: Path) -> None:
    run_script(tmp_path, "0.2", "--picture", str(tmp_path / "answers.svg"))
    assert (tmp_path / "answers.svg").read_bytes() == draw_answers("m", ASKED)


def test_the_script_shows_the_table_of_what_it_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.raises(OllamakeError, match=r"models\.m\.answers\.min_score asks for 50%"):
        run_script(tmp_path, "0.5")
    assert "| Q4_K_M | `m:q4_k_m` | 1 | 5 | 20.0% | below 50% |" in caplog.text
    assert not (tmp_path / "answers.json").exists()
