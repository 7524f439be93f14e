"""What is checked before work starts, and the disk that a build will need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_server import playing

from ollamake import input_checks
from ollamake.errors import OllamakeError
from ollamake.input_checks import check_inputs


def spec(base: Path, adapter: Path | None, **changes: Any) -> dict[str, Any]:
    values = {
        "base": str(base),
        "adapters": [{"path": str(adapter), "weight": 1.0}] if adapter else [],
        "made_here": [],
        "dtype": "auto",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "target": "store",
        "host": "127.0.0.1:1",
        "questions": None,
        "compiler_needed": False,
    }
    return values | changes


def test_what_was_found(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    found = check_inputs("m", spec(base, make_adapter(base)), tmp_path / "results")
    assert found["tensors_with_update"] == 14
    assert found["disk_free_gb"] > found["disk_needed_gb"] > 0


def test_disk_counts_what_is_still_to_be_written(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(input_checks, "require_free_disk", lambda _folder, needed, _what: asked.append(needed))
    base, results = make_base(), tmp_path / "results"
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    check_inputs("m", spec(base, None), results)
    assert asked[-1] > 2 * weights
    (results / "m/gguf").mkdir(parents=True)
    (results / "m/gguf/m.unquantized.gguf").write_bytes(b"")
    (results / "m/gguf/m.Q8_0.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert asked[-1] < asked[-2] - weights
    (results / "m/gguf/m.Q4_K_M.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert asked[-1] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compiler_needed": True}, "no C compiler found"),
        ({"target": "server", "host": "127.0.0.1:1"}, "no Ollama server answers"),
    ],
)
def test_the_surroundings_are_checked_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(OllamakeError, match=words):
        check_inputs("m", spec(tmp_path / "nowhere", None, **changes), tmp_path)


def test_what_a_rule_makes_is_not_looked_for(tmp_path: Path) -> None:
    made = str(tmp_path / "not there yet")
    assert (
        check_inputs("m", spec(tmp_path / "not there yet", None, made_here=[made]), tmp_path)["tensors_with_update"]
        is None
    )


QUESTION = '{"question": "設計速度は？", "expect": "80"}'


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of questions, on a machine without Ollama."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "questions.jsonl").write_text(f"{QUESTION}\n{QUESTION}\n", encoding="utf-8")
    return tmp_path / "questions.jsonl"


def check_questions(tmp_path: Path, questions: Path, **changes: Any) -> None:
    made = str(tmp_path / "made")
    check_inputs("m", spec(Path(made), None, made_here=[made], questions=str(questions), **changes), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"models\.m\.answers\.questions: .*questions\.jsonl cannot be read"),
        ("", r"models\.m\.answers\.questions: .* has no questions"),
        (f"{QUESTION}\n\n{{}}\n", r"models\.m\.answers\.questions: .*questions\.jsonl, line 3: `messages` is missing"),
    ],
)
def test_faults_of_the_questions_are_told_before_anything_is_built(
    tmp_path: Path, questions: Path, content: str | None, words: str
) -> None:
    questions.unlink()
    if content is not None:
        questions.write_text(content, encoding="utf-8")
    with pytest.raises(OllamakeError, match=words):
        check_questions(tmp_path, questions)


@pytest.mark.parametrize("target", ["auto", "store"])
def test_questions_that_nobody_can_answer(tmp_path: Path, questions: Path, target: str) -> None:
    with pytest.raises(
        OllamakeError, match=r"models\.m\.answers\.questions: nobody can answer them: .*no `ollama` on PATH"
    ):
        check_questions(tmp_path, questions, target=target)


@pytest.mark.parametrize("target", ["auto", "store"])
def test_an_ollama_on_path_can_serve_the_store_and_answer(
    tmp_path: Path, questions: Path, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ollama").write_text("")
    (tmp_path / "bin/ollama").chmod(0o755)
    with caplog.at_level("INFO", "ollamake"):
        check_questions(tmp_path, questions, target=target)
    assert "2 questions" in caplog.text


@pytest.mark.parametrize(("target", "answered"), [("auto", True), ("server", True), ("store", False)])
def test_a_server_answers_if_models_are_registered_there(
    tmp_path: Path, questions: Path, target: str, answered: bool
) -> None:
    with playing() as server:
        if answered:
            check_questions(tmp_path, questions, target=target, host=server.address)
        else:
            with pytest.raises(OllamakeError, match="nobody can answer them"):
                check_questions(tmp_path, questions, target=target, host=server.address)
            assert server.requests == []


def test_without_questions_nobody_need_be_there_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = str(tmp_path / "made")
    for target in ("auto", "store"):
        check_inputs("m", spec(Path(made), None, made_here=[made], target=target), tmp_path)


def test_a_specification_by_hand_that_lacks_a_key() -> None:
    left_out = ("host", "questions", "target")
    with pytest.raises(OllamakeError, match="--spec lacks host, questions, target"):
        input_checks.refuse_incomplete({key: None for key in spec(Path("b"), None) if key not in left_out})
    input_checks.refuse_incomplete(spec(Path("b"), None))
