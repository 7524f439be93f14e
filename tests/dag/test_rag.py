"""The RAG application's configuration follows the registered model, and nothing of it starts anything else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dag_build import Build

PROMPT = {"write_modelfile": 2, "register": 2}
ONE = {"write_rag_config": 1}

BEFORE = """\
# 設定 of the application
llm:
    use_finetuned: false   # ours
    ollama_model:  "llama3:8b"
    ollama_host: http://localhost:11434

retrieval: {top_k: 5,   path: 'データ'}
"""
AFTER = """\
# 設定 of the application
llm:
    use_finetuned: true   # ours
    ollama_model:  "small:q4_k_m"
    use_ollama_fallback: true
    num_ctx: 4096
    ollama_host: http://localhost:11434

retrieval: {top_k: 5,   path: 'データ'}
"""


BACKUP = "app/config.yaml.before-ollamake"
RECORD = "results/small/ollama/rag_config.json"


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def run_all(build: Build) -> str:
    build.write_config()
    return build.run("--cores", "2", "all")


@pytest.fixture(scope="module")
def written(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build whose model was written into app/config.yaml, with everything else a user may have there."""
    folder = tmp_path_factory.mktemp("rag") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished.config)))
    (folder / "app").mkdir()
    (folder / "app/config.yaml").write_bytes(crlf(BEFORE))
    build.model()["rag"] = {"file": "app/config.yaml"}
    build.model()["ollama"]["parameters"]["num_ctx"] = 4096
    assert build.planned() == {"check_inputs": 1, "check_template": 1} | PROMPT | ONE
    assert (folder / "app/config.yaml").read_bytes() == crlf(BEFORE)
    run_all(build)
    return build


@pytest.fixture
def rag(written: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(written.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(written.config)))
    shutil.rmtree(folder)


def file_of(build: Build) -> Path:
    return build.folder / "app/config.yaml"


def edit(build: Build, before: str, after: str) -> None:
    """Change the application's file as its user does."""
    content = file_of(build).read_bytes()
    assert before.encode() in content
    file_of(build).write_bytes(content.replace(before.encode(), after.encode()))


def test_written_once_and_recorded(rag: Build) -> None:
    assert file_of(rag).read_bytes() == crlf(AFTER)
    assert (rag.folder / BACKUP).read_bytes() == crlf(BEFORE)
    record = json.loads((rag.folder / RECORD).read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256(crlf(AFTER)).hexdigest()
    assert record["values"] == {
        "llm.use_finetuned": True,
        "llm.use_ollama_fallback": True,
        "llm.ollama_model": "small:q4_k_m",
        "llm.num_ctx": 4096,
    }
    assert record["before"]["llm.ollama_model"] == '"llama3:8b"'
    assert record["model"]["target"] == "store"
    log = (rag.folder / "logs/write_rag_config/small.log").read_text(encoding="utf-8")
    assert 'llm.ollama_model: "llama3:8b" -> "small:q4_k_m"' in log
    shown = [line for line in log.splitlines() if line.startswith(("-  ", "+  "))]
    differing = set(BEFORE.splitlines()) ^ set(AFTER.splitlines())
    assert {line[1:] for line in shown} == differing
    assert "llm.ollama_host stays as it is: the model is in the store" in log
    assert rag.planned() == {}


def test_what_else_is_in_the_file_starts_nothing(rag: Build) -> None:
    edit(rag, "# ours", "# 私たちの")
    edit(rag, "top_k: 5", "top_k: 50")
    edit(rag, "localhost", "gpu")
    assert rag.planned() == {}


def test_a_value_changed_back_by_hand_is_set_again_once(rag: Build) -> None:
    for _ in range(2):
        edit(rag, "small:q4_k_m", "llama3:8b")
        assert rag.planned() == ONE
        run_all(rag)
        assert file_of(rag).read_bytes() == crlf(AFTER)
        assert rag.planned() == {}
    assert len(list(file_of(rag).parent.iterdir())) == 3


def test_the_backup_put_back_is_noticed_whatever_its_time(rag: Build) -> None:
    (rag.folder / BACKUP).replace(file_of(rag))
    os.utime(file_of(rag), (1e9, 1e9))
    assert rag.planned() == ONE
    run_all(rag)
    assert file_of(rag).read_bytes() == crlf(AFTER)
    assert rag.planned() == {}


def test_a_prompt_registers_and_leaves_the_file_alone(rag: Build) -> None:
    rag.model()["ollama"]["system"] = "Answer briefly."
    assert rag.planned() == PROMPT
    before = file_of(rag).stat()
    run_all(rag)
    assert file_of(rag).stat() == before
    assert rag.planned() == {}


def test_a_prompt_and_a_value_changed_by_hand_at_once(rag: Build) -> None:
    rag.model()["ollama"]["system"] = "Answer briefly."
    edit(rag, "num_ctx: 4096", "num_ctx: 2048")
    assert rag.planned() == PROMPT | ONE
    run_all(rag)
    assert file_of(rag).read_bytes() == crlf(AFTER)
    assert rag.planned() == {}


def test_another_context_and_another_name(rag: Build) -> None:
    rag.model()["ollama"] |= {"parameters": {"num_ctx": 2048, "temperature": 0.1}, "name": "road"}
    assert rag.planned() == PROMPT | {"check_template": 1} | ONE
    run_all(rag)
    expected = AFTER.replace("small:q4_k_m", "road:q4_k_m").replace("4096", "2048")
    assert file_of(rag).read_bytes() == crlf(expected)
    assert rag.planned() == {}


def test_another_quantization_and_keys(rag: Build) -> None:
    rag.model()["rag"] |= {"quantization": "Q8_0", "keys": {"num_ctx": None, "use_ollama_fallback": None}}
    assert rag.planned() == {"check_inputs": 1} | ONE
    run_all(rag)
    assert file_of(rag).read_bytes() == crlf(AFTER.replace("small:q4_k_m", "small:q8_0"))
    assert rag.planned() == {}


def test_one_more_quantization_behind_the_first(rag: Build) -> None:
    rag.model()["quantizations"].append("Q6_K")
    assert "write_rag_config" not in rag.planned()
    rag.model()["quantizations"].insert(0, "Q6_K")
    rag.model()["quantizations"].pop()
    assert rag.planned()["write_rag_config"] == 1


def test_a_model_that_is_gone_is_registered_and_the_file_left_alone(rag: Build) -> None:
    (rag.folder / "results/ollama-store/manifests/registry.ollama.ai/library/small/q4_k_m").unlink()
    assert rag.planned() == {"register": 1}


def test_a_damaged_model_is_not_written_into_the_file(rag: Build) -> None:
    """Of a blob whose size is right only its bytes say that it is damaged."""
    blob = max((rag.folder / "results/ollama-store/blobs").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.unlink()
    blob.write_bytes(content)
    rag.model()["rag"]["quantization"] = "Q8_0"
    edited = file_of(rag).read_bytes()
    rag.write_config()
    said = rag.run_to_failure("--cores", "2", "rag")
    assert "small:q8_0 is not as it was registered, so nothing has been written to app/config.yaml" in said
    assert file_of(rag).read_bytes() == edited


def test_a_file_that_is_no_yaml_any_more_fails_by_name(rag: Build) -> None:
    edit(rag, "llm:", "llm: [")
    assert rag.planned() == ONE
    said = rag.run_to_failure("--cores", "2", "all")
    assert "app/config.yaml, line " in said
    assert "this is no YAML" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "llm: [a]\n",
            ["models.small.rag.file: app/config.yaml, line 1: llm: expected keys with values, found a list"],
        ),
        ("llm: {\n", ["models.small.rag.file: app/config.yaml, line 2", "this is no YAML"]),
        (
            "# 設定\nllm: {}\n".encode("cp932"),
            ["models.small.rag.file: app/config.yaml, line 1: expected YAML in UTF-8"],
        ),
    ],
)
def test_checked_with_the_inputs(rag: Build, content: str | bytes, words: list[str]) -> None:
    shutil.rmtree(rag.folder / "results")
    file_of(rag).write_bytes(content if isinstance(content, bytes) else content.encode())
    rag.write_config()
    said = rag.run_to_failure("--cores", "2", "all")
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert not list(rag.folder.glob("results/**/*.safetensors"))


def test_a_plan_that_chooses_the_quantization(rag: Build) -> None:
    """What the plan chooses is known in the middle of the run; afterwards there is nothing left to do."""
    rag.model()["quantizations"] = "auto"
    rag.model()["ollama"]["parameters"].pop("num_ctx")
    run_all(rag)
    chosen = json.loads((rag.folder / "results/small/plan.json").read_text(encoding="utf-8"))
    kind = chosen["recommendation"]["type"]
    lines = file_of(rag).read_text(encoding="utf-8").splitlines()
    assert f'    ollama_model:  "small:{kind.lower()}"' in lines
    assert f"    num_ctx: {chosen['num_ctx'][kind]['tokens']}" in lines
    assert rag.planned() == {}
