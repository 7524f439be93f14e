"""scripts/check_endpoint.py on the demo, served by the real Ollama's /v1 and by llama-server."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake

import check_endpoint
from ollamake.errors import OllamakeError
from ollamake.llama_server import llama_server

QUESTIONS = REPOSITORY / "config/demo/road_design.jsonl"
ASKED = "設計速度80km/hの道路の最小曲線半径は？"


@pytest.fixture(scope="module")
def built(work: Path, server: str) -> tuple[Path, str]:
    """(working directory, address of Ollama) with the demo registered as F16 and its files to serve it elsewhere."""
    model = {
        "base": "trained/base",
        "adapter": "trained/adapter",
        "quantizations": ["F16"],
        "ollama": {"system": "道路設計の専門家として回答します。", "parameters": {"num_thread": 1}},
        "serving": {},
    }
    config = {
        "models": {"demo": model},
        "ollama": {"target": "server", "host": server},
        "tools": {"llama_cpp": str(LLAMA_CPP)},
    }
    (work / "mine.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = run_snakemake("--cores", "2", "registered", "serving", "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    return work, server


def check(url: str, *arguments: str | Path) -> None:
    check_endpoint.main(["--url", f"{url}/v1", "--message", ASKED, *map(str, arguments)])


def few_questions(folder: Path) -> Path:
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "questions.jsonl").write_text("".join(lines[::10]), encoding="utf-8")
    return folder / "questions.jsonl"


def test_ollama(built: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work, address = built
    caplog.set_level(logging.INFO)
    merged, name = work / "results/demo/merged", "demo:f16"
    questions = few_questions(tmp_path)
    check(address, "--model", name, "--tokenizer", merged, "--context", "2048", "--questions", questions)
    assert "conversations may have 2,048 tokens (/api/ps), 2,048 are expected" in caplog.text
    assert "is prompted with as many tokens as in training" in caplog.text
    assert "6 checks passed, 0 left out" in caplog.text
    with pytest.raises(OllamakeError, match="has no model 'demo:other'; it lists demo:f16"):
        check(address, "--model", "demo:other")
    with pytest.raises(OllamakeError, match="does not stop by itself: it was cut off after 2 tokens"):
        check(address, "--model", name, "--max-tokens", "2")
    with pytest.raises(OllamakeError, match=r"expected at least 4,096 \(--context\)"):
        check(address, "--model", name, "--context", "4096")
    with pytest.raises(OllamakeError, match=r"the server refuses \(404\).*with /v1 at its end"):
        check_endpoint.main(["--url", address])
    # Another chat template than the server's.
    shutil.copytree(merged, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    template = tmp_path / "other/chat_template.jinja"
    template.write_text("road design " + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(OllamakeError, match="is not prompted as in training: the server's prompt has"):
        check(address, "--model", name, "--tokenizer", tmp_path / "other")


def test_llama_server(
    built: tuple[Path, str], llama_cpp: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work, _ = built
    caplog.set_level(logging.INFO)
    gguf = work / "results/demo/gguf/demo.F16.gguf"
    with llama_server(llama_cpp("llama-server"), gguf) as server:
        merged, questions = work / "results/demo/merged", few_questions(tmp_path)
        check(server.address, "--tokenizer", merged, "--context", "2048", "--questions", questions)
        assert "(/props), 2,048 are expected" in caplog.text
        assert "6 checks passed, 0 left out" in caplog.text
        with pytest.raises(OllamakeError, match="does not stop by itself"):
            check(server.address, "--max-tokens", "2")
