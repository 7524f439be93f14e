"""What is checked before work starts, and the disk that a build will need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_server import playing

import check_inputs as check_inputs_script
from ollamake import input_checks
from ollamake.disk_peak import TOOLS_BYTES, DiskPeak, Registration
from ollamake.errors import OllamakeError
from ollamake.free_memory import Memory
from ollamake.input_checks import check_inputs
from ollamake.ollama_server import OllamaServer
from ollamake.program_start import require_starting


def spec(base: Path, adapter: Path | None, **changes: Any) -> dict[str, Any]:
    """Return what is checked of a base, which is given a tokenizer that no test compares with another."""
    if base.is_dir():
        (base / "tokenizer.model").touch()
    values = {
        "base": str(base),
        "adapters": [{"path": str(adapter), "weight": 1.0}] if adapter else [],
        "made_here": [],
        "dtype": "auto",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "target": "store",
        "host": "127.0.0.1:1",
        "store": str(base.parent / "store"),
        "questions": None,
        "compiler_needed": False,
        "tools": [],
        "keep_merged": True,
        "keep_unquantized": True,
        "disk_gib": None,
    }
    return values | changes


def test_what_was_found(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    found = check_inputs("m", spec(base, make_adapter(base)), tmp_path / "results")
    assert found["tensors_with_update"] == 14
    assert found["disk_free_gb"] > found["disk_needed_gb"] > 0
    assert found["disk_peak_at"] == "quantizing to Q8_0"
    assert found["disk_stays_gb"] == found["disk_needed_gb"]
    assert found["largest_job"]["job"].startswith("merging model-0000")
    assert 0.5 < found["largest_job"]["memory_gb"] < found["memory_free_gb"]
    assert found["assumed"] is None


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[DiskPeak]:
    """The peaks that are judged."""
    asked: list[DiskPeak] = []
    monkeypatch.setattr(input_checks, "require_disk", lambda _name, peak, _folder, **_how: asked.append(peak) or 10**9)
    return asked


def test_disk_counts_what_is_still_to_be_written(
    make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak]
) -> None:
    base, results = make_base(), tmp_path / "results"
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    check_inputs("m", spec(base, None), results)
    assert peaks[-1].needed > 2 * weights
    (results / "m/gguf").mkdir(parents=True)
    (results / "m/gguf/m.unquantized.gguf").write_bytes(b"")
    (results / "m/gguf/m.Q8_0.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert peaks[-1].needed < peaks[-2].needed - weights
    (results / "m/gguf/m.Q4_K_M.gguf").write_bytes(b"")
    check_inputs("m", spec(base, None), results)
    assert peaks[-1].needed == 0


def test_files_that_do_not_stay(make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak]) -> None:
    base = make_base()
    check_inputs("m", spec(base, None), tmp_path)
    check_inputs("m", spec(base, None, keep_merged=False, keep_unquantized=False), tmp_path)
    assert peaks[1].needed < peaks[0].needed
    assert peaks[1].stays < peaks[0].stays


def test_a_choice_that_is_not_made_yet_counts_as_the_largest(
    make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak]
) -> None:
    base = make_base()
    found = check_inputs("m", spec(base, None, quantizations=["auto"]), tmp_path, {"chosen": []})
    assert found["quantizations"] == ["Q8_0"]
    assert "`auto` is counted as Q8_0, the largest" in found["assumed"]
    assert check_inputs("m", spec(base, None, quantizations=["Q8_0"]), tmp_path)["assumed"] is None
    assert peaks[0] == peaks[1]
    found = check_inputs("m", spec(base, None, quantizations=["auto", "Q8_0", "Q2_K"]), tmp_path)
    assert found["quantizations"] == ["Q8_0", "Q2_K"]


def test_a_choice_that_a_plan_has_made(make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak]) -> None:
    base = make_base()
    now = {"chosen": ["F16", "Q2_K"]}
    found = check_inputs("m", spec(base, None, quantizations=["auto", "Q2_K"]), tmp_path, now)
    assert found["quantizations"] == ["F16", "Q2_K"]
    assert "as the plan that is there has it: F16, Q2_K" in found["assumed"]
    check_inputs("m", spec(base, None, quantizations=["F16", "Q2_K"]), tmp_path)
    assert peaks[0] == peaks[1]
    # What is named is built as it is named, whatever a plan says.
    assert check_inputs("m", spec(base, None, quantizations=["Q2_K"]), tmp_path, now)["quantizations"] == ["Q2_K"]


def other_model(name: str, *kinds: str, weights: int = 340_000_000) -> dict[str, Any]:
    return {"name": name, "base_bytes": weights, "quantizations": list(kinds)}


def test_the_other_models_of_the_configuration(make_base: Callable[..., Path], tmp_path: Path) -> None:
    asked = spec(make_base(), None, disk_gib=0.4, quantizations=["Q8_0"])
    alone = check_inputs("m", asked, tmp_path / "results")
    assert alone["disk_other_models_gb"] == 0
    now = {"others": [other_model("n", "auto"), other_model("o", "Q8_0", "auto")]}
    kept = 2 * (2 * 0.34 + 0.34 / 16 * 8.501)
    with pytest.raises(
        OllamakeError, match=rf"other models of this configuration: {kept + 0.04:.2f} GB.*allows 0.4 GiB"
    ):
        check_inputs("m", asked, tmp_path / "results", now)
    found = check_inputs("m", asked | {"disk_gib": 2}, tmp_path / "results", now)
    assert found["disk_other_models_gb"] == round(kept + 0.04, 2)
    assert found["disk_needed_gb"] == alone["disk_needed_gb"]
    found = check_inputs("m", asked | {"keep_merged": False, "keep_unquantized": False}, tmp_path / "results", now)
    assert found["disk_other_models_gb"] == round(0.34 / 8 * 8.501 + 0.02, 2)


def test_the_other_models_count_beside_one_that_a_rule_makes(tmp_path: Path, peaks: list[DiskPeak]) -> None:
    made = str(tmp_path / "made")
    asked = spec(tmp_path / "made", None, made_here=[made])
    check_inputs("m", asked, tmp_path, {"others": [other_model("n", "Q8_0", weights=0)]})
    assert peaks[0].others == peaks[0].needed == 100_000_000


@pytest.mark.parametrize(
    ("target", "marker", "registered"),
    [
        ("store", {"target": "store", "store": "STORE"}, True),
        ("auto", {"target": "store", "store": "STORE"}, True),
        ("store", {"target": "store", "store": "elsewhere"}, False),
        ("auto", {"target": "server", "host": "http://127.0.0.1:1"}, False),
        ("store", {"target": "server", "host": "http://127.0.0.1:1"}, False),
    ],
)
def test_a_marker_of_another_place_counts_for_nothing(
    make_base: Callable[..., Path],
    tmp_path: Path,
    peaks: list[DiskPeak],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    marker: dict[str, str],
    registered: bool,
) -> None:
    monkeypatch.setattr(input_checks, "same_filesystem", lambda *_folders: False)
    asked = spec(make_base(), None, quantizations=["Q8_0"], target=target)
    for name in ("m", "n"):
        (tmp_path / f"{name}/gguf").mkdir(parents=True)
        (tmp_path / f"{name}/gguf/{name}.Q8_0.gguf").touch()
        (tmp_path / f"{name}/ollama/Q8_0").mkdir(parents=True)
        said = {key: asked["store"] if value == "STORE" else value for key, value in marker.items()}
        (tmp_path / f"{name}/ollama/Q8_0/registered.json").write_text(json.dumps(said))
    check_inputs("m", asked, tmp_path, {"others": [other_model("n", "Q8_0")]})
    assert (peaks[0].in_store == 0, peaks[0].others_in_store == 0) == (registered, registered)


@pytest.mark.parametrize("answers", [True, False])
def test_auto_is_the_server_that_answers(
    make_base: Callable[..., Path],
    tmp_path: Path,
    peaks: list[DiskPeak],
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    with playing() as server:
        host = server.address
        asked = spec(make_base(), None, quantizations=["Q8_0"], target="auto", host=host if answers else "127.0.0.1:1")
        (tmp_path / "m/gguf").mkdir(parents=True)
        (tmp_path / "m/gguf/m.Q8_0.gguf").touch()
        (tmp_path / "m/ollama/Q8_0").mkdir(parents=True)
        marker = tmp_path / "m/ollama/Q8_0/registered.json"
        marker.write_text(json.dumps({"target": "server", "host": OllamaServer(host).address}))
        check_inputs("m", asked, tmp_path)
        marker.write_text(json.dumps({"target": "store", "store": asked["store"]}))
        check_inputs("m", asked, tmp_path)
    # A store on the same disk shares the file.
    assert [peak.needed > 0 for peak in peaks] == [False, answers]


def test_programs_that_are_built_already(
    make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(input_checks, "require_compiler", lambda: asked.append(1))
    base = make_base()
    cases = [(True, {}), (True, {"builds_llama_cpp": True}), (True, {"builds_llama_cpp": False})]
    cases += [(False, {"builds_llama_cpp": True}), (False, {})]
    for needed, now in cases:
        check_inputs("m", spec(base, None, compiler_needed=needed), tmp_path, now)
    assert len(asked) == 2
    least = peaks[-1].needed
    assert [peak.needed - least for peak in peaks] == [TOOLS_BYTES, TOOLS_BYTES, 0, 0, 0]
    made = spec(base, None, compiler_needed=True, made_here=[str(base)])
    check_inputs("m", made, tmp_path, {"builds_llama_cpp": False})
    check_inputs("m", made, tmp_path)
    assert peaks[-1].needed - peaks[-2].needed == TOOLS_BYTES


@pytest.mark.parametrize(
    ("address", "models", "counted"),
    [
        ("http://127.0.0.1:11434", None, "server"),
        ("https://localhost/ollama", None, "server"),
        ("http://[::1]:11434", None, "server"),
        ("http://gpu.example:11434", None, "elsewhere"),
        ("http://localhost.example:11434", None, "elsewhere"),
        ("http://127.0.0.1:11434", "/proc", "elsewhere"),
        ("http://127.0.0.1:11434", ".", "server"),
        (None, None, "shared"),
    ],
)
def test_where_the_registered_weights_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, models: str | None, counted: str
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    if models:
        monkeypatch.setenv("OLLAMA_MODELS", models)
    server = None if address is None else OllamaServer(address)
    found = input_checks._registration(server, tmp_path / "store", tmp_path / "results")
    place = ("store", str(tmp_path / "store")) if server is None else ("server", server.address)
    assert found == Registration(counted, *place)


def test_a_store_on_another_filesystem_is_a_copy(tmp_path: Path) -> None:
    assert input_checks._registration(None, Path("/proc/store"), tmp_path / "results").way == "copy"


def test_a_machine_without_memory_for_the_largest_job(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_checks, "free_memory", lambda: Memory(10**9, 10**8))
    with pytest.raises(OllamakeError, match="not enough memory for building m: merging model-0000"):
        check_inputs("m", spec(make_base(), None), tmp_path)
    # The jobs of a cluster run on other machines.
    found = check_inputs("m", spec(make_base(), None), tmp_path, {"jobs_run_here": False})
    assert found["memory_free_gb"] is None
    assert found["largest_job"]["memory_gb"] > 0.5


def test_the_disk_that_a_build_may_take(make_base: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(OllamakeError, match=r"hardware\.disk_gib allows 0\.001 GiB"):
        check_inputs("m", spec(make_base(), None, disk_gib=0.001), tmp_path)
    assert check_inputs("m", spec(make_base(), None, disk_gib=0.5), tmp_path)["disk_allowed_gb"] == 0.54


def program(folder: Path, text: str | bytes, mode: int = 0o755) -> list[list[str]]:
    path = folder / "llama-quantize"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return [["llama-quantize", str(path)]]


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\necho usage\nexit 1\n",
        '#!/bin/sh\n[ "$1" = --help ] || kill -SEGV $$\necho usage\n',
        "#!/bin/sh\necho version 1\n",
    ],
)
def test_a_program_that_starts(tmp_path: Path, text: str) -> None:
    made = str(tmp_path)
    check_inputs("m", spec(tmp_path, None, made_here=[made], tools=program(tmp_path, text)), tmp_path)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("#!/bin/sh\nkill -ILL $$\n", 0o755, r"crashes \(SIGILL"),
        ("#!/bin/sh\necho libggml.so: cannot open >&2\nexit 127\n", 0o755, "exit code 127: libggml.so: cannot open"),
        (b"\x7fELF of another processor", 0o755, "cannot be executed \\(Exec format error"),
        ("#!/bin/sh\nexec sleep 9\n", 0o755, "did not end within 0.3 s"),
        ("#!/bin/sh\necho nothing\n", 0o755, "answers nothing that llama.cpp's programs do"),
        ("#!/no/such/interpreter\n", 0o755, "cannot be executed"),
    ],
)
def test_a_program_that_does_not_start(tmp_path: Path, text: str | bytes, mode: int, words: str) -> None:
    ((name, path),) = program(tmp_path, text, mode)
    with pytest.raises(OllamakeError, match=f"llama-quantize was found at .*{words}.*tools.llama_cpp"):
        require_starting(name, Path(path), seconds=0.3)


def test_a_llama_perplexity_that_cannot_read_conversations(tmp_path: Path) -> None:
    """It is found out when there is a conversation to measure on, before anything is merged."""
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"question": "Who?", "answer": "I"}\n')
    tools = [["llama-perplexity", str(Path(program(tmp_path, "#!/bin/sh\necho usage: --perplexity\n")[0][1]))]]
    of_chat, of_text = ({"evaluation": {"chat": c, "text": t}} for c, t in (([str(chat)], []), ([], [])))
    with pytest.raises(OllamakeError, match=r"cannot score a chat \(quality\.chat\): it has no option --parse-special"):
        check_inputs("m", spec(tmp_path / "nowhere", None, tools=tools, texts=of_chat), tmp_path)
    made = {"made_here": [str(tmp_path)], "tools": tools}
    check_inputs("m", spec(tmp_path, None, texts=of_text, **made), tmp_path)
    program(tmp_path, "#!/bin/sh\necho usage: --parse-special\n")
    check_inputs("m", spec(tmp_path, None, texts=of_chat, **made), tmp_path)


def test_programs_are_tried_before_the_model_is_read(tmp_path: Path) -> None:
    tools = program(tmp_path, "#!/bin/sh\nexit 127\n")
    with pytest.raises(OllamakeError, match="exit code 127"):
        check_inputs("m", spec(tmp_path / "nowhere", None, tools=tools), tmp_path)


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
    for key in spec(Path("b"), None):
        with pytest.raises(OllamakeError, match=f"--spec lacks {key}$"):
            input_checks.refuse_incomplete({other: None for other in spec(Path("b"), None) if other != key})
    input_checks.refuse_incomplete(spec(Path("b"), None))


def test_what_is_so_now_with_a_key_that_is_not_known() -> None:
    complete = spec(Path("b"), None)
    input_checks.refuse_incomplete(
        complete, {"chosen": [], "builds_llama_cpp": True, "jobs_run_here": True, "others": [other_model("n")]}
    )
    with pytest.raises(OllamakeError, match="--now has keys that are not known: choosen"):
        input_checks.refuse_incomplete(complete, {"choosen": []})
    with pytest.raises(OllamakeError, match="--now: a model of `others` lacks base_bytes, quantizations"):
        input_checks.refuse_incomplete(complete, {"others": [{"name": "n"}]})


def test_the_entry_point(make_base: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "results/m/inputs.json"
    asked = ["--model", "m", "--spec", json.dumps(spec(make_base(), None)), "--output", str(output)]
    check_inputs_script.main(asked)
    assert json.loads(output.read_text())["disk_other_models_gb"] == 0
    check_inputs_script.main([*asked, "--now", json.dumps({"others": [other_model("n", "auto")]})])
    assert json.loads(output.read_text())["disk_other_models_gb"] > 0.34


def texts(folder: Path, evaluation: str, calibration: str | None = None) -> dict[str, Any]:
    (folder / "e.txt").write_text(evaluation, encoding="utf-8")
    found = {"evaluation": {"text": [str(folder / "e.txt")], "chat": []}}
    if calibration is not None:
        (folder / "c.txt").write_text(calibration, encoding="utf-8")
        found["calibration"] = {"text": [str(folder / "c.txt")], "chat": []}
    return found


def test_texts_are_checked_before_work_starts(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    given = texts(tmp_path, "A sentence of some length.\nAnother one of some length.\n", "Something else altogether.\n")
    check_inputs("m", spec(base, None, texts=given), tmp_path / "results")
    for evaluation, calibration, message in (
        (" \n", None, r"models\.m\.quality\.text"),
        ("fine\n", " \n", r"models\.m\.imatrix\.text"),
        ("A sentence of some length.\n", "Before. A sentence of some length.\n", r"models\.m\.quality\.text.*100 %"),
    ):
        given = texts(tmp_path, evaluation, calibration)
        with pytest.raises(OllamakeError, match=message):
            check_inputs("m", spec(base, None, texts=given), tmp_path / "results")


def test_types_that_are_only_measured_take_disk(
    make_base: Callable[..., Path], tmp_path: Path, peaks: list[DiskPeak]
) -> None:
    base = make_base()
    check_inputs("m", spec(base, None), tmp_path / "results")
    check_inputs("m", spec(base, None, compared=["Q6_K", "Q8_0"]), tmp_path / "results")
    check_inputs("m", spec(base, None, quantizations=[], measured_unquantized=True), tmp_path / "results")
    alone, compared, unquantized = (peak.stays for peak in peaks)
    assert compared > alone > unquantized > 0
