"""The check of a server that speaks OpenAI's API, against a played one; real servers are in tests/e2e."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_port import free_port
from played_server import HANG_UP, Cut, PlayedServer, playing
from transformers import AutoTokenizer

import check_endpoint
from ollamake.demo_base import save_tokenizer, train_tokenizer
from ollamake.errors import OllamakeError

SCRIPT = Path(check_endpoint.__file__)
MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(text: str = "Hi there", reason: str | None = "stop", prompt_tokens: int | None = 5, **message: Any) -> Any:
    usage = {} if prompt_tokens is None else {"usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 2}}
    return {"choices": [{"message": {"content": text, **message}, "finish_reason": reason}], **usage}


def events(*chunks: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(chunk)}" for chunk in chunks] + ["data: [DONE]"] * done
    return "".join(f"{line}\n\n" for line in lines).encode()


def chunk(text: str | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {} if text is None else {"content": text}, "finish_reason": reason}]}


GOOD_STREAM = events(chunk("Hi "), chunk("there"), chunk(None, "stop"))


def answering(whole: Any = None, stream: bytes = GOOD_STREAM) -> Any:
    """Answer a request for a stream with the stream, others all at once."""
    return [lambda body: (200, stream if json.loads(body).get("stream") else whole or chat())]


@pytest.fixture
def server() -> Iterator[PlayedServer]:
    """Serves `m`, of 4,096 tokens as vLLM says it."""
    with playing() as server:
        server.answers[("GET", "/v1/models")] = [(200, {"data": [{"id": "m", "max_model_len": 4096}]})]
        server.answers[("POST", "/v1/chat/completions")] = answering()
        yield server


def check(server: PlayedServer, *arguments: str | Path) -> None:
    check_endpoint.main(["--url", f"{server.address}/v1", "--timeout", "5", *map(str, arguments)])


def fault(server: PlayedServer, *arguments: str | Path) -> str:
    with pytest.raises(OllamakeError) as caught:
        check(server, *arguments)
    return str(caught.value)


def test_what_is_said_of_a_good_server(server: PlayedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    check(server, "--context", "4096")
    assert [record.message for record in caplog.records if "HTTP Request" not in record.message] == [
        "lists its model: m",
        "answers and stops by itself: 'Hi there'",
        "streams and stops by itself: 'Hi there', the same text",
        "conversations may have 4,096 tokens (/v1/models), 4,096 are expected",
        "not checked: how it is prompted, as no --tokenizer is given",
        "4 checks passed, 1 left out",
    ]
    whole, stream = (json.loads(body) for body in server.asked("POST", "/v1/chat/completions"))
    assert whole == {"model": "m", "messages": MESSAGES, "temperature": 0, "seed": 1, "max_tokens": 512}
    assert stream == whole | {"stream": True}


def test_a_program_ends_with_one_message_and_a_code(server: PlayedServer) -> None:
    command = [sys.executable, str(SCRIPT), "--url", f"{server.address}/v1"]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, "")
    bad = subprocess.run([*command, "--model", "other"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert bad.stderr.startswith(f"error: {server.address}/v1 has no model 'other'; it lists m.")
    assert "Traceback" not in bad.stderr


def test_no_server() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(OllamakeError, match=f"no server answers at {url}: .*--url"):
        check_endpoint.main(["--url", url])


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/v1", "http://"])
def test_no_address(url: str) -> None:
    with pytest.raises(OllamakeError, match=r"no server answers at|cannot be sent"):
        check_endpoint.main(["--url", url])


def test_a_server_that_hangs_up_or_stays_silent(server: PlayedServer) -> None:
    server.answers[("POST", "/v1/chat/completions")] = [HANG_UP]
    assert "the connection broke off" in fault(server)

    def late(body: bytes) -> tuple[int, Any]:
        time.sleep(1)
        return 200, chat()

    server.answers[("POST", "/v1/chat/completions")] = [late]
    assert "no answer within 0.2 seconds (--timeout)" in fault(server, "--timeout", "0.2")


def test_several_models_must_be_told_apart(server: PlayedServer) -> None:
    server.answers[("GET", "/v1/models")] = [(200, {"data": [{"id": "a"}, {"id": "b"}]})]
    assert "lists 2 models: a, b. Name one with --model" in fault(server)
    check(server, "--model", "b")
    server.answers[("GET", "/v1/models")] = [(200, {"data": []})]
    assert "lists 0 models: none" in fault(server)


def test_a_key(server: PlayedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    answer = server.answer

    def guarded(method: str, path: str, body: bytes) -> tuple[int, Any]:
        return answer(method, path, body) if seen.pop() == "Bearer sesame" else (401, {"error": "Unauthorized"})

    handler = server.RequestHandlerClass
    play = handler._play  # type: ignore[attr-defined]

    def noting(self: Any) -> None:
        seen.append(self.headers.get("Authorization"))
        play(self)

    monkeypatch.setattr(server, "answer", guarded)
    for method in ("do_GET", "do_POST"):
        monkeypatch.setattr(handler, method, noting)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "asks for a key (401): put it into the environment variable OPENAI_API_KEY" in fault(server)
    monkeypatch.setenv("MINE", "open")
    assert "environment variable MINE" in fault(server, "--api-key-env", "MINE")
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    caplog.set_level("DEBUG")
    check(server)
    assert "sesame" not in caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", "鍵")
    assert "cannot be sent" in fault(server)


def test_a_server_that_never_stops(server: PlayedServer) -> None:
    server.answers[("POST", "/v1/chat/completions")] = answering(chat("la la la", "length"))
    message = fault(server, "--max-tokens", "3")
    assert "m does not stop by itself: it was cut off after 3 tokens" in message
    assert "'la la la'" in message
    stream = events(chunk("la"), chunk(" la", "length"))
    server.answers[("POST", "/v1/chat/completions")] = answering(None, stream)
    assert "does not stop by itself" in fault(server)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (chat(""), "m answers nothing: it stops at once"),
        (chat("x", "tool_calls"), "expected finish_reason `stop`; found 'tool_calls'"),
        (chat("x", None), "found None"),
        ({"choices": []}, "expected an answer with choices[0].message"),
        ({"object": "error"}, "expected an answer with choices[0].message"),
        ([1], "expected a JSON object"),
        (b"<html>It works!</html>", "expected a JSON object, as of OpenAI's API; found '<html>It works!</html>'"),
    ],
)
def test_answers_that_are_none(server: PlayedServer, answer: Any, expected: str) -> None:
    server.answers[("POST", "/v1/chat/completions")] = [(200, answer)]
    assert expected in fault(server)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (events(chunk("Hi"), done=False), "the stream broke off after 2 characters"),
        (Cut(events(chunk("Hi"), done=False)), "the connection broke off"),
        (events({"error": {"message": "out of memory"}}), 'the server broke off: \'{"message": "out of memory"}\''),
        (b"data: {nonsense\n\n", "expected a chunk of OpenAI's API; found '{nonsense'"),
        (events([1]), "expected a chunk of OpenAI's API"),
        (events({"choices": [3]}), "expected a chunk of OpenAI's API"),
        (json.dumps(chat()).encode(), "the stream broke off after 0 characters"),
        (events(chunk("Hi")), "found None"),
    ],
)
def test_streams_that_are_none(server: PlayedServer, stream: bytes, expected: str) -> None:
    server.answers[("POST", "/v1/chat/completions")] = answering(None, stream)
    assert expected in fault(server)


def test_a_stream_that_is_refused(server: PlayedServer) -> None:
    server.answers[("POST", "/v1/chat/completions")] = [(200, chat()), (500, {"error": "no streams"})]
    assert '(stream): the server refuses (500): \'{"error": "no streams"}\'' in fault(server)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, 'the server refuses (404): \'{"error": "no"}\'. Is --url right, with /v1 at its end?'),
        (500, "the server refuses (500)"),
        (503, "the server is not ready yet (503)"),
        (403, "asks for a key (403)"),
    ],
)
def test_refusals(server: PlayedServer, status: int, expected: str) -> None:
    server.answers[("GET", "/v1/models")] = [(status, {"error": "no"})]
    assert expected in fault(server)


@pytest.mark.parametrize("listed", [{"data": [{"name": "x"}]}, {"models": []}, {"data": "m"}])
def test_models_in_no_known_form(server: PlayedServer, listed: Any) -> None:
    server.answers[("GET", "/v1/models")] = [(200, listed)]
    assert "/models: expected {data: [{id: ...}]}" in fault(server)


LISTED = {"data": [{"id": "m"}]}


@pytest.mark.parametrize(
    ("models", "path", "said"),
    [
        ({"data": [{"id": "m", "max_model_len": 2048}]}, None, "/v1/models"),
        # vLLM's entry of an adapter has its base's name.
        ({"data": [{"id": "base", "max_model_len": 2048}, {"id": "m", "parent": "base"}]}, None, "/v1/models"),
        (LISTED, ("GET", "/props", {"default_generation_settings": {"n_ctx": 2048}}), "/props"),
        (LISTED, ("GET", "/info", {"max_total_tokens": 2048}), "/info"),
        (LISTED, ("GET", "/api/ps", {"models": [{"name": "m:latest", "context_length": 2048}]}), "/api/ps"),
    ],
)
def test_the_context_is_found(
    server: PlayedServer, caplog: pytest.LogCaptureFixture, models: Any, path: Any, said: str
) -> None:
    caplog.set_level("INFO")
    server.answers[("GET", "/v1/models")] = [(200, models)]
    if path:
        server.answers[path[:2]] = [(200, path[2])]
    check(server, "--model", "m", "--context", "2048")
    assert f"conversations may have 2,048 tokens ({said}), 2,048 are expected" in caplog.text
    message = fault(server, "--model", "m", "--context", "2049")
    assert f"conversations may have 2,048 tokens ({said}), expected at least 2,049 (--context)" in message


def test_a_context_that_is_not_said(server: PlayedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.answers[("GET", "/v1/models")] = [(200, LISTED)]
    check(server)
    assert "not checked: the server does not say how long a conversation may be" in caplog.text
    assert "so it cannot be checked" in fault(server, "--context", "10")


def test_tgi_lists_its_base_only(server: PlayedServer) -> None:
    server.answers[("GET", "/v1/models")] = [(200, {"data": [{"id": "results/m/merged"}]})]
    assert "has no model 'm'" in fault(server, "--model", "m")
    server.answers[("GET", "/info")] = [(200, {"model_id": "results/m/merged", "max_total_tokens": 4096})]
    check(server, "--model", "m")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_tokenizer(train_tokenizer(["road design Hello", "道路設計"]), tmp_path)
    return tmp_path


def prompt_tokens(folder: Path, messages: list[dict[str, str]]) -> int:
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    return len(ids["input_ids"])


def test_prompts_are_as_long_as_transformers_makes_them(server: PlayedServer, tokenizer: Path) -> None:
    expected = prompt_tokens(tokenizer, MESSAGES)
    server.answers[("POST", "/v1/chat/completions")] = answering(chat(prompt_tokens=expected))
    check(server, "--tokenizer", tokenizer)
    server.answers[("POST", "/v1/chat/completions")] = answering(chat(prompt_tokens=expected + 1))
    message = fault(server, "--tokenizer", tokenizer)
    assert (
        f"the server's prompt has {expected + 1} tokens, the chat template in {tokenizer} gives {expected}" in message
    )
    server.answers[("POST", "/v1/chat/completions")] = answering(chat(prompt_tokens=None))
    assert "does not count the tokens of prompts" in fault(server, "--tokenizer", tokenizer)
    assert "there is no folder" in fault(server, "--tokenizer", tokenizer / "no")


def test_the_system_prompt_of_a_model_in_ollama_is_counted(server: PlayedServer, tokenizer: Path) -> None:
    system = [{"role": "system", "content": "道路設計の専門家"}]
    expected = prompt_tokens(tokenizer, system + MESSAGES)
    assert expected > prompt_tokens(tokenizer, MESSAGES)
    server.answers[("POST", "/api/show")] = [(200, {"system": "道路設計の専門家"})]
    server.answers[("POST", "/v1/chat/completions")] = answering(chat(prompt_tokens=expected))
    check(server, "--tokenizer", tokenizer)


def test_a_folder_without_chat_template(server: PlayedServer, tokenizer: Path) -> None:
    (tokenizer / "chat_template.jinja").unlink()
    assert "has no chat template to compare with" in fault(server, "--tokenizer", tokenizer)
    (tokenizer / "chat_template.jinja").write_text("{{ raise_exception('never') }}", encoding="utf-8")
    assert "refuses the conversation: never" in fault(server, "--tokenizer", tokenizer)


def test_questions(server: PlayedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    questions = tmp_path / "q.jsonl"
    asked = [("Radius?", "280"), ("Speed?", "80"), ("Color?", "blue")]
    questions.write_text("".join(json.dumps({"question": q, "expect": e}) + "\n" for q, e in asked), encoding="utf-8")
    answers = {"Radius?": "280 m", "Speed?": "80 km/h", "Color?": "red"}

    def answer(body: bytes) -> tuple[int, Any]:
        request = json.loads(body)
        return 200, GOOD_STREAM if request.get("stream") else chat(answers[request["messages"][0]["content"]])

    server.answers[("POST", "/v1/chat/completions")] = [answer]
    message = fault(server, "--questions", questions)
    assert "m answers 2 of 3 questions rightly, expected at least 80% (--min-score):\n    'Color?': 'red'" in message
    check(server, "--questions", questions, "--min-score", "0.6")
    assert "answers 2 of 3 questions rightly" in caplog.text
    assert ", another text than at once" in caplog.text


def test_a_model_that_thinks_first(server: PlayedServer) -> None:
    whole = chat("", reasoning_content="so it is")
    stream = events({"choices": [{"delta": {"reasoning": "so it is"}}]}, chunk(None, "stop"))
    server.answers[("POST", "/v1/chat/completions")] = answering(whole, stream)
    check(server)
