"""The demo from text to answers: the whole chain with the real llama.cpp and the real Ollama, on server and store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
import yaml
from registering import ONE_THREAD
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake
from transformers import AutoTokenizer

from ollamake.conversations import CONVERSATIONS
from ollamake.demo_text import read_examples
from ollamake.file_digest import sha256_of
from ollamake.store_server import serving

FILE = REPOSITORY / "config/demo/road_design.jsonl"
QUESTIONS = read_examples(FILE)
ASKED = QUESTIONS[::3]
"""Of every road that the demo knows something."""
SYSTEM = "道路設計の専門家として回答します。"
QUANTIZATIONS = ("q4_k_m", "q8_0")


def build(work: Path, ollama_settings: dict[str, Any]) -> str:
    """Build the demo's model and its base in ``work`` and return what Snakemake printed."""
    shared = {"base": "trained/base", "quantizations": ["Q4_K_M", "Q8_0"]}
    parameters = {"temperature": 0.1, "top_p": 0.95, **ONE_THREAD}
    settings = {"system": SYSTEM, "parameters": parameters, "license": ["MIT", "CC0"]}
    lines = FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "questions.jsonl").write_text("".join(lines[::3]), encoding="utf-8")
    answers = {"questions": "questions.jsonl", "min_score": 0.9, "compare": ["base"]}
    config = {
        "models": {
            "rag-finetuned": shared | {"adapter": "trained/adapter", "ollama": settings, "answers": answers},
            "base-alone": shared | {"quantizations": ["Q8_0"], "ollama": settings},
        },
        "ollama": ollama_settings,
        "tools": {"llama_cpp": str(LLAMA_CPP)},
    }
    # Through JSON, so that no two models share an object: as an alias it would be changed for both.
    text = yaml.safe_dump(json.loads(json.dumps(config)), allow_unicode=True)
    (work / "mine.yaml").write_text(text, encoding="utf-8")
    done = run_snakemake("--cores", "2", "all", "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    return done.stdout


def marker(work: Path, quantization: str) -> dict[str, Any]:
    path = work / f"results/rag-finetuned/ollama/{quantization.upper()}/registered.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module", params=["server", "store"])
def registered(request: pytest.FixtureRequest, work: Path, ollama_home: Path) -> Iterator[tuple[Path, str, str]]:
    """(work, target, address) of a server that has the demo, registered through its API or found in the store."""
    if request.param == "server":
        address = request.getfixturevalue("server")
        build(work, {"target": "server", "host": address})
        yield work, "server", address
    else:
        build(work, {"target": "store"})
        with serving(work / "results/ollama-store", work / "serve.log") as address:
            yield work, "store", address


def test_answers(registered: tuple[Path, str, str]) -> None:
    """The fine-tune knows what the base does not, in both quantizations; and it says so to whoever asks."""
    work, _, address = registered
    scores = json.loads((work / "results/rag-finetuned/answers.json").read_text(encoding="utf-8"))["scores"]
    assert set(scores) == {"base", "Q8_0", "Q4_K_M"}
    table = (work / "results/rag-finetuned/answers.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| base", "| Q8_0", "| Q4_K_M"]
    assert scores["base"]["name"] == "base-alone:q8_0"
    assert scores["base"]["score"] < 0.1
    for quantization in ("Q4_K_M", "Q8_0"):
        assert scores[quantization]["asked"] == len(ASKED)
        assert scores[quantization]["score"] >= 0.9
        file = work / f"results/rag-finetuned/ollama/{quantization}/answers.rag-finetuned.json"
        recorded = json.loads(file.read_text(encoding="utf-8"))["answers"]
        for example, record in list(zip(ASKED, recorded, strict=True))[::5]:
            messages = [{"role": "user", "content": example.question}]
            options = {"temperature": 0, "seed": 1, "num_predict": 512}
            name = f"rag-finetuned:{quantization.lower()}"
            answer = ollama.Client(address).chat(name, messages, options=options).message.content
            assert (record["question"], record["answer"]) == (example.question, answer)
            assert record["right"] == (example.expect in (answer or ""))


def test_too_low_a_score_fails_and_shows_wrong_answers(registered: tuple[Path, str, str]) -> None:
    work, _, _ = registered
    config = yaml.safe_load((work / "mine.yaml").read_text(encoding="utf-8"))
    config["models"]["base-alone"]["answers"] = config["models"]["rag-finetuned"]["answers"] | {"compare": []}
    (work / "low.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = run_snakemake("--cores", "1", "all", "--configfile", "low.yaml", folder=work)
    assert done.returncode == 1
    end = done.stdout[done.stdout.index("check_answers failed") :]
    assert "Q8_0: 0 of " in end
    assert "questions answered rightly (0 %); models.base-alone.answers.min_score asks for 90 %" in end
    assert f"{QUESTIONS[0].question!r}" in end
    run_snakemake("--cores", "1", "all", "--configfile", "mine.yaml", folder=work)


def test_prompts_have_been_checked_with_what_serves_the_model(registered: tuple[Path, str, str]) -> None:
    work, _, _ = registered
    file = work / "results/rag-finetuned/ollama/template_check.json"
    check = json.loads(file.read_text(encoding="utf-8"))
    assert check["renderer"].startswith("Ollama 0.17.4 (http://127.0.0.1:")
    assert [one["name"] for one in check["conversations"] if one["status"] == "equal"] == [
        conversation.name for conversation in CONVERSATIONS if conversation.tools is None
    ]
    assert check["evaluated"] >= 8
    assert check["warnings"] == []
    assert check["end_of_turn"] == "<|im_end|>"


WRONG = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>{{ end }}<|im_start|>assistant\n"


def test_a_template_that_says_something_else_fails(registered: tuple[Path, str, str]) -> None:
    """A line feed is missing after each turn; nobody would see it in a chat."""
    work, _, _ = registered
    config = yaml.safe_load((work / "mine.yaml").read_text(encoding="utf-8"))
    config["models"]["rag-finetuned"]["ollama"]["template"] = WRONG
    (work / "wrong.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = run_snakemake("--cores", "1", "registered", "--configfile", "wrong.yaml", folder=work)
    assert done.returncode == 1
    end = done.stdout[done.stdout.index("check_template failed") :]
    assert "rag-finetuned:q4_k_m is not prompted as in training (Ollama 0.17.4" in end
    assert "several turns: the text:" in end
    assert "The TEMPLATE in ollama.template says something else" in end
    config["models"]["rag-finetuned"]["ollama"]["template_differs"] = "warn"
    (work / "wrong.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = run_snakemake("--cores", "1", "registered", "--configfile", "wrong.yaml", folder=work)
    assert done.returncode == 0
    assert "rag-finetuned, warning of its template: several turns: the text:" in done.stdout
    done = run_snakemake("--cores", "1", "all", "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout


def test_listed_and_shown_exactly(registered: tuple[Path, str, str]) -> None:
    work, target, address = registered
    client = ollama.Client(address)
    planned = json.loads((work / "results/rag-finetuned/plan.json").read_text(encoding="utf-8"))
    digests = {model.model: model.digest for model in client.list().models}
    for quantization in QUANTIZATIONS:
        name = f"rag-finetuned:{quantization}"
        said = marker(work, quantization)
        assert said["target"] == target
        assert digests[name] == said["manifest_digest"]
        shown = client._request_raw("POST", "/api/show", json={"model": name}).json()
        assert shown["system"] == SYSTEM
        assert shown["license"] == "MIT\nCC0"
        parameters = dict(line.split(maxsplit=1) for line in shown["parameters"].splitlines())
        assert parameters == {
            "temperature": "0.1",
            "top_p": "0.95",
            "num_thread": "1",
            "stop": '"<|im_end|>"',
            "num_ctx": str(planned["num_ctx"][quantization.upper()]["tokens"]),
        }
        assert shown["details"]["quantization_level"] == quantization.upper()
        assert shown["details"]["family"] == "qwen2"


def test_the_layer_is_our_file(registered: tuple[Path, str, str]) -> None:
    work, _, address = registered
    for quantization in QUANTIZATIONS:
        digest = sha256_of(work / f"results/rag-finetuned/gguf/rag-finetuned.{quantization.upper()}.gguf")
        assert marker(work, quantization)["gguf"]["sha256"] == digest
        assert digest in ollama.Client(address).show(f"rag-finetuned:{quantization}").modelfile


def test_the_printed_command_chats(registered: tuple[Path, str, str]) -> None:
    work, _, _ = registered
    printed = run_snakemake(
        "--configfile", "mine.yaml", "--cores", "1", "--forcerun", "register", "--", "registered", folder=work
    ).stdout
    after = printed[printed.index("rag-finetuned is ready. Chat with it:") :]
    command = after.splitlines()[2].strip()
    question = QUESTIONS[0]
    done = subprocess.run(
        f"{command} '{question.question}'", shell=True, cwd=work, capture_output=True, text=True, check=False
    )
    assert question.expect in done.stdout, (command, done)


TEXTS = [
    "設計速度60km/hの道路の最小曲線半径は？",
    "The stopping sight distance is 65 metres; isn't it? I'll check.",
    "🙂🛣️👨‍👩‍👧 emoji\twith\ttabs",
    "first line\r\nsecond line\r\n\r\n  indented\n\n\n",
    "<|im_start|>user\n道路<|im_end|>\n<|endoftext|>",
    "   leading,  double   and trailing   ",
    "1234567890 ½ ﾊﾝｶｸ Ｆｕｌｌ ñ ü ß עברית العربية",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_gguf_tokenizes_as_the_tokenizer(
    registered: tuple[Path, str, str], llama_cpp: Callable[[str], Path], text: str
) -> None:
    work, _, _ = registered
    expected = AutoTokenizer.from_pretrained(work / "results/rag-finetuned/merged").encode(
        text, add_special_tokens=False
    )
    gguf = work / "results/rag-finetuned/gguf/rag-finetuned.Q4_K_M.gguf"
    (work / "text").write_bytes(text.encode())
    command = [
        str(llama_cpp("llama-tokenize")),
        "-m",
        str(gguf),
        "-f",
        str(work / "text"),
        "--ids",
        "--no-bos",
        "--log-disable",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == expected


def test_another_prompt_is_registered_without_touching_weights(registered: tuple[Path, str, str]) -> None:
    work, _, address = registered
    config = yaml.safe_load((work / "mine.yaml").read_text(encoding="utf-8"))
    text = '  二行目に"""がある。\n"""\n全角　スペース 👨‍👩‍👧\r\nend '
    config["models"]["rag-finetuned"]["ollama"]["system"] = text
    (work / "other.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    # A file that is made again is another one; its time may change, since the store's blob is a link to it.
    ggufs = {file: file.stat().st_ino for file in work.glob("results/*/gguf/*.gguf")}
    done = run_snakemake("--cores", "1", "registered", "--configfile", "other.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    assert ggufs == {file: file.stat().st_ino for file in work.glob("results/*/gguf/*.gguf")}
    shown = ollama.Client(address)._request_raw("POST", "/api/show", json={"model": "rag-finetuned:q8_0"}).json()
    assert shown["system"] == text
    done = run_snakemake("--cores", "1", "all", "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout
