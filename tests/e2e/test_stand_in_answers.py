"""What the stand-in for Ollama 0.33 says with a real llama-server behind it: prompts, answers, loading and unloading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from stand_in.running import StandIn, standing_in
from stand_in.tiny_gguf import CHATML, OTHER, VOCABULARY, write_gguf

QUESTION = {"role": "user", "content": "設計速度 <b>&"}
GREEDY = {"temperature": 0, "num_predict": 4}
TEMPLATE = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}\n{{ end }}"


@pytest.fixture(scope="module")
def running(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in with tiny models of random words: `other` has an own jinja, `chatml` one that Ollama recognises."""
    folder = tmp_path_factory.mktemp("stand-in")
    quantize, server = llama_cpp("llama-quantize"), llama_cpp("llama-server")
    with standing_in(folder / "models", folder / "log", quantize, server) as running:
        client = ollama.Client(running.address)
        for name, chat_template in (("other", OTHER), ("chatml", CHATML)):
            digest = client.create_blob(write_gguf(folder / f"{name}.gguf", chat_template))
            client.create(name, files={"x.gguf": digest}, system="S", parameters={"num_predict": 2, "seed": 1})
        yield running


@pytest.fixture
def http(running: StandIn) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.address, timeout=120) as client:
        yield client
        for name in ("other", "chatml"):
            assert client.post("/api/generate", json={"model": name, "keep_alive": 0}).status_code == 200
        assert client.get("/api/ps").json() == {"models": []}


def rendered(http: httpx.Client, **body: Any) -> str:
    answer = http.post("/api/chat", json={"messages": [QUESTION], "_debug_render_only": True} | body)
    assert "_debug_info" in answer.json(), answer.text
    text: str = answer.json()["_debug_info"]["rendered_template"]
    return text


def test_prompts(http: httpx.Client) -> None:
    """By the jinja in the GGUF, or by the TEMPLATE that was recognised; with the model's system unless there is one."""
    assert rendered(http, model="other") == "[system]S[user]設計速度 <b>&"
    start, end = "<|im_start|>", "<|im_end|>\n"
    expected = f"{start}system\nS{end}{start}user\n設計速度 <b>&{end}{start}assistant\n"
    assert rendered(http, model="chatml") == expected
    own = [{"role": "System", "content": "O"}, QUESTION]
    assert rendered(http, model="other", messages=own) == "[system]O[user]設計速度 <b>&"


def test_messages_of_the_model_come_first(http: httpx.Client) -> None:
    body = {"model": "with-messages", "from": "other", "messages": [{"role": "user", "content": "1"}], "stream": False}
    assert http.post("/api/create", json=body).status_code == 200
    assert rendered(http, model="with-messages") == "[system]S[user]1[user]設計速度 <b>&"


def test_long_conversations_lose_their_beginning(http: httpx.Client) -> None:
    turns = [{"role": "user", "content": "a" * 30}, {"role": "assistant", "content": "b" * 30}, QUESTION]
    assert rendered(http, model="other", messages=turns).startswith("[system]S[user]a")
    short = {"num_ctx": 64}
    assert rendered(http, model="other", messages=turns, options=short) == "[system]S[user]設計速度 <b>&"


def test_answers_whole_and_in_pieces(running: StandIn, http: httpx.Client) -> None:
    client = ollama.Client(running.address)
    for name in ("other", "chatml"):
        whole = client.chat(name, [QUESTION], options=GREEDY)
        pieces = list(client.chat(name, [QUESTION], options=GREEDY, stream=True))
        assert whole.message.content == "".join(piece.message.content or "" for piece in pieces)
        assert (pieces[-1].done, pieces[-1].done_reason) == (True, "length")
        assert [piece.done for piece in pieces[:-1]] == [False] * (len(pieces) - 1)
        assert whole.eval_count == 4
    # The model's own num_predict, where the request has none.
    assert client.chat("other", [QUESTION]).eval_count == 2


def test_generate(running: StandIn, http: httpx.Client) -> None:
    client = ollama.Client(running.address)
    bare = client.generate("other", "xy", template="{{ .Prompt }}", options=GREEDY)
    raw = client.generate("other", "xy", raw=True, options=GREEDY)
    assert (bare.prompt_eval_count, raw.prompt_eval_count) == (2, 2)
    assert bare.response == raw.response
    assert list(bare.context or [])[:2] == [VOCABULARY.index("x"), VOCABULARY.index("y")]
    assert raw.context is None
    body = {"model": "other", "prompt": "xy", "_debug_render_only": True}
    assert http.post("/api/generate", json=body).json()["_debug_info"]["rendered_template"] == "[system]S[user]xy"
    body |= {"template": "{{ .System }}|{{ .Prompt }}|{{ .Response }}|"}
    assert http.post("/api/generate", json=body).json()["_debug_info"]["rendered_template"] == "S|xy|"


def test_loaded_and_unloaded(http: httpx.Client) -> None:
    assert http.post("/api/chat", json={"model": "Other", "messages": []}).json()["done_reason"] == "load"
    (loaded,) = http.get("/api/ps").json()["models"]
    assert (loaded["name"], loaded["context_length"]) == ("other:latest", 256), (
        "no more than the model was trained with"
    )
    body = {"model": "other", "messages": [QUESTION], "stream": False, "options": GREEDY, "keep_alive": "0s"}
    assert http.post("/api/chat", json=body).json()["done"]
    assert http.get("/api/ps").json() == {"models": []}


def test_two_names_of_one_blob_share_what_is_loaded(http: httpx.Client) -> None:
    """As in Ollama, even where one is prompted by llama-server and the other is not: it is not started again."""
    body = {"model": "templated", "from": "other", "template": TEMPLATE, "stream": False}
    assert http.post("/api/create", json=body).status_code == 200
    assert rendered(http, model="templated") == "<system>S\n<user>設計速度 <b>&\n"
    chatml = rendered(http, model="other")
    assert chatml.startswith("<|im_start|>system"), "llama-server runs with its placeholder template"
    assert [model["name"] for model in http.get("/api/ps").json()["models"]] == ["templated:latest"]
    http.post("/api/generate", json={"model": "other", "keep_alive": 0})
    assert rendered(http, model="other").startswith("[system]S")


def test_a_broken_chat_template_is_noticed_at_the_first_question(
    running: StandIn, http: httpx.Client, tmp_path: Path
) -> None:
    client = ollama.Client(running.address)
    digest = client.create_blob(write_gguf(tmp_path / "broken.gguf", "{% for m in messages %}{{ m }}{% endfo %}"))
    client.create("broken", files={"x.gguf": digest})
    answer = http.post("/api/chat", json={"model": "broken", "messages": [QUESTION]})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("llama-server process has terminated: exit status 1")


def test_the_stream_is_lines_of_json(http: httpx.Client) -> None:
    body = {"model": "other", "messages": [QUESTION], "options": GREEDY}
    answer = http.post("/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert list(lines[-1])[:5] == ["model", "created_at", "message", "done", "done_reason"]
    assert {"total_duration", "prompt_eval_count", "eval_count"} <= set(lines[-1])
