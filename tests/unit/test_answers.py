"""Answers are asked for in the same way each time, scored, compared, and refused or warned of where they know too little."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from markdown_it import MarkdownIt

import check_answers
import compare_answers
from ollamake.answers import ask
from ollamake.answers_comparison import compare, demanded, table
from ollamake.answers_gate import judge, refusal, smallest_that_passes
from ollamake.answers_plot import draw_answers
from ollamake.errors import OllamakeError
from ollamake.ollama_server import OllamaServer
from ollamake.questions import Question
from ollamake.record_seal import read_record, read_sealed_text


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


JUDGED = ("Q8_0", "Q4_K_M")
KEY = "models.m.answers.min_score"
OF_QUALITY = "models.m.quality.min_answers"


def compared(
    min_score: float, judged: Sequence[str] = JUDGED, key: str = KEY, on_fail: str = "stop", **more: dict[str, Any]
) -> dict[str, Any]:
    """Return the comparison of ASKED, in which ``more`` takes the place of labels or comes in beside them."""
    return compare("m", ASKED | more, judged, min_score, key, on_fail)


def test_a_score_is_asked_of_the_judged_alone() -> None:
    wrong = {"expect": ["yes"], "answer": "n" * 200}
    assert compared(0.8) == {
        "model": "m",
        "min_score": 0.8,
        "limit_key": KEY,
        "on_fail": "stop",
        "scores": {
            "base": {"name": "m-base:q8_0", "right": 0, "asked": 5, "score": 0.0, "passes": None},
            "fine-tune": {"name": "m:f16", "right": 5, "asked": 5, "score": 1.0, "passes": None},
            "Q8_0": {"name": "m:q8_0", "right": 4, "asked": 5, "score": 0.8, "passes": True},
            "Q4_K_M": {"name": "m:q4_k_m", "right": 1, "asked": 5, "score": 0.2, "passes": False},
        },
        "failures": [
            {
                "label": "Q4_K_M",
                "sentence": "Q4_K_M: 1 of 5 questions answered rightly (20 %); models.m.answers.min_score asks for 80 %:"
                " 3 too few",
                # Three of the four wrong ones, each cut to 200 characters.
                "wrong": [{"question": f"question {number}", **wrong} for number in (1, 2, 3)],
            }
        ],
    }


@pytest.mark.parametrize(
    ("right", "asked", "min_score", "too_few"),
    [(0, 70, 0.9, 63), (62, 70, 0.9, 1), (0, 3, 1.0, 3), (2, 3, 0.67, 1), (0, 10, 0.01, 1), (2, 10, 0.3, 1)],
)
def test_by_how_many_answers(right: int, asked: int, min_score: float, too_few: int) -> None:
    one = answered("m:q8_0", *[True] * right, *[False] * (asked - right))
    (failure,) = compare("m", {"Q8_0": one}, ["Q8_0"], min_score, KEY, "stop")["failures"]
    assert failure["sentence"].endswith(f": {too_few} too few")
    enough = answered("m:q8_0", *[True] * (right + too_few), *[False] * (asked - right - too_few))
    assert compare("m", {"Q8_0": enough}, ["Q8_0"], min_score, KEY, "stop")["failures"] == []


def test_the_table() -> None:
    texts = ("a | b", "two\nlines", "  半径は？ ")
    asked = {
        "base": answered("m-base:q8_0", False, False, False, texts=texts),
        "Q8_0": answered("m:q8_0", True, True, False, texts=texts),
        "Q2_K": answered("m:q2_k", False, True, False, texts=texts),
    }
    scores = (
        "| model | in Ollama | right | of | share | |\n"
        "| --- | --- | ---: | ---: | ---: | --- |\n"
        "| base | `m-base:q8_0` | 0 | 3 | 0.0% |  |\n"
        "| Q8_0 | `m:q8_0` | 2 | 3 | 66.7% | passes |\n"
    )
    questions = (
        "| question | base | Q8_0 | Q2_K |\n"
        "| --- | :-: | :-: | :-: |\n"
        "| a \\| b | ✗ | ✓ | ✗ |\n"
        "| two lines | ✗ | ✓ | ✓ |\n"
        "| 半径は？ | ✗ | ✗ | ✗ |\n"
    )
    assert table(compare("m", asked, ["Q8_0", "Q2_K"], 0.6, OF_QUALITY, "warn"), asked) == (
        f"{scores}"
        "| Q2_K | `m:q2_k` | 1 | 3 | 33.3% | below 60% |\n"
        "\n"
        "models.m.quality.min_answers asks for 60 % right answers; fewer are a warning (models.m.quality.on_fail).\n"
        "\n"
        "- Q2_K: 1 of 3 questions answered rightly (33.3 %); models.m.quality.min_answers asks for 60 %: 1 too few.\n"
        "\n"
        f"{questions}"
    )
    assert table(compare("m", asked, ["Q8_0", "Q2_K"], 0.333, KEY, "stop"), asked) == (
        f"{scores}"
        "| Q2_K | `m:q2_k` | 1 | 3 | 33.3% | passes |\n"
        "\n"
        "models.m.answers.min_score asks for 33.3 % right answers.\n"
        "\n"
        f"{questions}"
    )


def test_the_table_is_two_tables_for_others() -> None:
    html = MarkdownIt("commonmark").enable("table").render(table(compared(0.9, JUDGED, OF_QUALITY, "warn"), ASKED))
    tags = re.findall(r"<(table|p|ul|li)>", html)
    assert tags == ["table", "p", "ul", "li", "li", "table"]
    assert f"<p>{demanded(compared(0.9, JUDGED, OF_QUALITY, 'warn'))}</p>" in html


def test_models_that_were_asked_different_questions_are_not_compared() -> None:
    asked = {"a": answered("a", True), "b": answered("b", True, False)}
    with pytest.raises(ValueError, match="zip"):
        table(compare("m", asked, [], 0, KEY, "stop"), asked)


def test_enough_right_answers_are_not_refused() -> None:
    for comparison in (compared(0.8, ["Q8_0"]), compared(1.0, []), compared(0.8, ["Q8_0"], OF_QUALITY, "warn")):
        verdict = judge(comparison)
        assert (verdict["passes"], verdict["failures"], verdict["warnings"]) == (True, [], [])


def test_the_verdict_says_which_key_and_warns_only_where_it_may() -> None:
    for key, on_fail in ((KEY, "stop"), (OF_QUALITY, "stop"), (OF_QUALITY, "warn")):
        said = f"Q4_K_M: 1 of 5 questions answered rightly (20 %); {key} asks for 50 %: 2 too few."
        assert judge(compared(0.5, JUDGED, key, on_fail)) == {
            "model": "m",
            "limit_key": key,
            "min_score": 0.5,
            "on_fail": on_fail,
            "passes": False,
            "failures": [said],
            "warnings": [said] if on_fail == "warn" else [],
        }


def test_too_few_right_answers_are_refused_with_wrong_ones_of_the_worst() -> None:
    wrong = "".join(f"  'question {number}'\n    expected ['yes'], answered '{'n' * 200}'\n" for number in (1, 2, 3))
    assert refusal(compared(0.9)) == (
        "Q8_0: 4 of 5 questions answered rightly (80 %); models.m.answers.min_score asks for 90 %: 1 too few.\n"
        "Q4_K_M: 1 of 5 questions answered rightly (20 %); models.m.answers.min_score asks for 90 %: 4 too few.\n"
        "None of the quantizations that were asked answers enough.\n"
        "All stay registered. To remove what fails: name other types in models.m.quantizations (else the next run registers it"
        " again), then `ollama rm m:q8_0 m:q4_k_m`.\n"
        "Wrong answers of Q4_K_M:\n"
        f"{wrong}"
        "What helps: a larger type: before quantization 100 % are right; a lower models.m.answers.min_score; models.m.quality:"
        " {min_answers: 0.9, on_fail: warn} in its place, with which the build goes on.\n"
        "All answers: results/m/answers.md and results/m/ollama/*/answers.m.json."
    )


def test_the_smallest_that_answers_enough_is_named() -> None:
    more = {kind: answered(f"m:{kind.lower()}", True, True, True, True, False) for kind in ("Q3_K_M", "Q6_K")}
    comparison = compared(0.8, ["Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M"], **more)
    # Fewer bits than the Q4_K_M that fails: scores of a few questions need not follow the size.
    assert smallest_that_passes(comparison) == "Q3_K_M"
    assert "The smallest that answers enough of those that were asked: Q3_K_M (80 %)." in refusal(comparison)
    assert smallest_that_passes(compared(0.8, ["Q8_0", "Q6_K", "Q4_K_M"], **more)) == "Q6_K"
    assert smallest_that_passes(compared(0.9)) is None


def test_what_helps_depends_on_the_fine_tune_before_quantization() -> None:
    before = answered("m:f16", True, True, False, False, False)
    said = refusal(compared(0.5, **{"fine-tune": before}))
    assert "other training, system prompt or questions: before quantization 40 % are right, too few as well;" in said
    assert "a larger type" not in said
    # One that the user wants registered, and that is judged for itself.
    assert "other training" in refusal(compare("m", {"F16": before}, ["F16"], 0.5, KEY, "stop"))
    alone = compare("m", {"Q4_K_M": ASKED["Q4_K_M"]}, ["Q4_K_M"], 0.5, KEY, "stop")
    assert "if it is quantizing that loses answers (models.m.answers.compare: [unquantized] tells)" in refusal(alone)


def test_how_to_go_on_all_the_same() -> None:
    said = {
        (key, on_fail): refusal(compared(0.5, JUDGED, key, on_fail)).splitlines()[-2]
        for key, on_fail in ((KEY, "stop"), (OF_QUALITY, "stop"), (OF_QUALITY, "warn"))
    }
    assert said[KEY, "stop"].endswith("models.m.quality: {min_answers: 0.5, on_fail: warn} in its place, with which the build"
                                      " goes on.")  # fmt: skip
    assert said[OF_QUALITY, "stop"].endswith("models.m.quality.on_fail: warn, with which the build goes on.")
    assert said[OF_QUALITY, "warn"].endswith("a lower models.m.quality.min_answers.")


def run_scripts(folder: Path, min_score: str, key: str = KEY, on_fail: str = "stop") -> None:
    """Compare the answers and judge them, as the two rules do."""
    for label, answers in ASKED.items():
        (folder / f"{label}=.json").write_text(json.dumps(answers), encoding="utf-8")
    compare_answers.main(
        [
            *("--model", "m", "--min-score", min_score, "--limit-key", key, "--on-fail", on_fail, "--judged", *JUDGED),
            *("--answers", *(f"{label}={folder}/{label}=.json" for label in ASKED)),
            *("--table", str(folder / "answers.md"), "--picture", str(folder / "answers.svg")),
            *("--output", str(folder / "answers.json")),
        ]
    )
    check_answers.main(["--answers", str(folder / "answers.json"), "--output", str(folder / "answers.verdict.json")])


def written(folder: Path, name: str) -> Any:
    return read_record(folder / name)


def test_the_scripts_write_scores_table_picture_and_verdict(tmp_path: Path) -> None:
    run_scripts(tmp_path, "0.2")
    comparison = compared(0.2)
    assert written(tmp_path, "answers.json") == comparison | {"spec": "{}"}
    assert read_sealed_text(tmp_path / "answers.md") == table(comparison, ASKED)
    assert read_sealed_text(tmp_path / "answers.svg") == draw_answers("m", ASKED).decode("utf-8")
    assert written(tmp_path, "answers.verdict.json") == judge(comparison)


def test_all_but_the_verdict_is_there_of_what_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.raises(OllamakeError) as caught:
        run_scripts(tmp_path, "0.5")
    assert str(caught.value) == refusal(compared(0.5))
    assert "| Q4_K_M | `m:q4_k_m` | 1 | 5 | 20.0% | below 50% |" in caplog.text
    assert written(tmp_path, "answers.json") == compared(0.5) | {"spec": "{}"}
    assert (tmp_path / "answers.md").exists()
    assert (tmp_path / "answers.svg").exists()
    assert not (tmp_path / "answers.verdict.json").exists()


def test_a_warning_lets_the_build_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        run_scripts(tmp_path, "0.5", OF_QUALITY, "warn")
    comparison = compared(0.5, JUDGED, OF_QUALITY, "warn")
    assert [one.getMessage() for one in caplog.records] == [f"warning: {refusal(comparison)}"]
    verdict = written(tmp_path, "answers.verdict.json")
    assert verdict == judge(comparison)
    assert verdict["warnings"] == verdict["failures"] != []
