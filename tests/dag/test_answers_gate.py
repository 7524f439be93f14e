"""Too few right answers stop a build after all else of the model is there, or are said at its end; a limit asks nothing again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build

QUESTIONS = ("Who?", "What?", "Where?", "When?")
RIGHT = {"Q8_0": 4, "Q4_K_M": 1}
MADE = ("answers.json", "answers.md", "answers.svg", "answers.html", "overview.html")


@pytest.fixture
def answered(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The finished build with what its models have answered, as ask_questions writes it.

    The inputs are refused where nobody could ask: there is an `ollama`, which fails if it is run.
    """
    program = tmp_path / "bin/ollama"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (build.folder / "q.jsonl").write_text(
        "".join(f"{json.dumps({'question': one, 'expect': 'I'})}\n" for one in QUESTIONS), encoding="utf-8"
    )
    for kind, right in RIGHT.items():
        answers = [
            {"question": question, "expect": ["I"], "answer": "I" if number < right else "you", "right": number < right}
            for number, question in enumerate(QUESTIONS)
        ]
        score = {"name": f"small:{kind.lower()}", "right": right, "asked": len(answers), "score": right / len(answers)}
        file = build.folder / f"results/small/ollama/{kind}/answers.small.json"
        file.write_text(json.dumps(score | {"answers": answers}), encoding="utf-8")
    build.model()["answers"] = {"questions": "q.jsonl", "min_score": 0.25}
    return build


def result(build: Build, name: str) -> Any:
    return json.loads((build.folder / "results/small" / name).read_text(encoding="utf-8"))


def test_too_few_right_answers_stop_when_all_else_is_there(answered: Build) -> None:
    answered.model()["answers"]["min_score"] = 0.75
    answered.write_config()
    said = answered.run_to_failure("--cores", "1", "all")
    end = said[said.index("check_answers failed (logs/check_answers/small.log)") :]
    assert (
        "Q4_K_M: 1 of 4 questions answered rightly (25 %); models.small.answers.min_score asks for 75 %: 2 too few."
        in end
    )
    assert "The smallest that answers enough of those that were asked: Q8_0 (100 %)." in end
    assert "`ollama rm small:q4_k_m`" in end
    for name in MADE:
        assert (answered.folder / "results/small" / name).exists(), name
    assert not (answered.folder / "results/small/answers.verdict.json").exists()
    assert answered.planned() == {"check_answers": 1}
    answered.model()["answers"]["min_score"] = 0.25
    answered.write_config()
    answered.run("--cores", "1", "all")
    assert result(answered, "answers.verdict.json")["passes"] is True
    assert answered.planned() == answered.planned_pages() == {}


def test_too_few_right_answers_are_said_at_the_end_where_they_only_warn(answered: Build) -> None:
    answered.model()["quality"] = {"min_answers": 0.75, "on_fail": "warn"}
    answered.write_config()
    said = answered.run("--cores", "2", "all")
    sentence = (
        "Q4_K_M: 1 of 4 questions answered rightly (25 %); models.small.quality.min_answers asks for 75 %: 2 too few."
    )
    end = said[said.index(f"small, warning of its answers: {sentence}") :]
    assert "small is ready" in end
    assert result(answered, "answers.verdict.json")["warnings"] == [sentence]
    assert answered.planned() == answered.planned_pages() == {}


def test_a_limit_asks_and_registers_nothing(answered: Build) -> None:
    answered.write_config()
    answered.run("--cores", "2", "all")
    for quality in ({"min_answers": 0.25}, {"min_answers": 0.2, "on_fail": "warn"}):
        answered.model()["quality"] = quality
        assert answered.planned() == {"compare_answers": 1, "check_answers": 1}
    del answered.model()["quality"]
    answered.model()["answers"]["min_score"] = 0.5
    assert answered.planned() == {"compare_answers": 1, "check_answers": 1}
