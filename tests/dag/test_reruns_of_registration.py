"""What concerns Ollama alone reruns Modelfile, registration and checks, and no weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dag_build import Build
from snakemake_runs import REPOSITORY

PROMPT = {"write_modelfile": 2, "register": 2}


def test_stop_texts(build: Build) -> None:
    build.model()["ollama"]["parameters"]["stop"] = ["<|im_end|>", "END"]
    assert build.planned() == PROMPT | {"check_template": 1}


def test_another_store(build: Build) -> None:
    build.config["ollama"]["store"] = "elsewhere"
    assert build.planned() == {"check_inputs": 1, "register": 2, "check_template": 1}


def test_a_template_of_ones_own(build: Build) -> None:
    build.model()["ollama"]["template"] = "{{ range .Messages }}{{ .Content }}{{ end }}"
    assert build.planned() == {"choose_template": 1, "check_template": 1} | PROMPT


def test_a_license_and_a_prompt_from_a_file(build: Build) -> None:
    (build.folder / "prompt.txt").write_text("道路設計の専門家。", encoding="utf-8")
    build.model()["ollama"]["system"] = {"file": "prompt.txt"}
    assert build.planned() == {}
    (build.folder / "prompt.txt").write_text("Answer briefly.", encoding="utf-8")
    build.model()["ollama"]["license"] = ["MIT"]
    assert build.planned() == PROMPT


@pytest.mark.parametrize("quantization", ["Q4_K_M", "Q8_0"])
def test_a_model_that_is_gone_from_the_store(build: Build, quantization: str) -> None:
    manifest = build.folder / "results/ollama-store/manifests/registry.ollama.ai/library/small" / quantization.lower()
    manifest.unlink()
    assert build.planned() == {"register": 1}
    assert build.planned("gguf") == {}
    build.run("--cores", "1", "all")
    assert manifest.exists()
    assert build.planned() == {}


def test_a_blob_that_is_gone_from_the_store(build: Build) -> None:
    blob = max((build.folder / "results/ollama-store/blobs").iterdir(), key=lambda file: file.stat().st_size)
    blob.unlink()
    assert build.planned() == {"register": 1}


def test_a_prompt_of_100_kb_reaches_the_store_to_the_byte(build: Build) -> None:
    text = "道路\"'\\ $x `y`　\r\n" * 5000
    build.model()["ollama"]["system"] = text
    build.write_config()
    build.run("--cores", "1", "all")
    blobs = build.folder / "results/ollama-store/blobs"
    assert text.encode() in [file.read_bytes() for file in blobs.iterdir()]


def test_answers_asked_for(build: Build) -> None:
    (build.folder / "q.jsonl").write_text('{"question": "Who?", "expect": "I"}\n', encoding="utf-8")
    build.model()["answers"] = {"questions": "q.jsonl", "compare": ["base", "unquantized"]}
    base = ("plan_merge", "measure_ghost", "plan_memory", "write_merge_report", "write_model_files", "convert_to_gguf")
    assert build.planned() == {
        **dict.fromkeys(base, 1),
        "record_conversion": 1,
        "choose_template": 1,
        "check_inputs": 2,
        "merge_shard": 3,
        "quantize": 2,
        "write_modelfile": 2,
        "register": 2,
        "ask_questions": 4,
        "compare_answers": 1,
        "check_answers": 1,
    }


def test_code_of_a_check_and_a_prompt_at_once(finished_with_own_code: Callable[[], tuple[Build, Path]]) -> None:
    """A job that follows a registration by an ancient edge is planned beside it all the same, if it has a reason."""
    build, code = finished_with_own_code()
    file = code / "scripts/ollamake/prompt_check.py"
    file.write_text(file.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    build.model()["ollama"]["system"], before = "Answer briefly.", build.model()["ollama"]["system"]
    try:
        assert build.planned("--snakefile", str(code / "Snakefile")) == PROMPT | {"check_template": 1}
    finally:
        build.model()["ollama"]["system"] = before
        shutil.copy2(REPOSITORY / "scripts/ollamake/prompt_check.py", file)
