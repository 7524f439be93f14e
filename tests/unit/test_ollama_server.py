"""The client's behaviour on what a server answers, faults included."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played_server import HANG_UP, Cut, PlayedServer, playing

from ollamake import ollama_server
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_server import NoSuchModel, OllamaServer, ServerUnreachable

MESSAGES = [{"role": "user", "content": "設計速度は？"}]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedServer]:
    monkeypatch.setattr(ollama_server, "_FIRST_PAUSE", 0.01)
    with playing() as server:
        yield server


@pytest.fixture
def server(played: PlayedServer) -> OllamaServer:
    return OllamaServer(played.address)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


def ndjson(*parts: dict[str, Any]) -> bytes:
    return "".join(json.dumps(part, ensure_ascii=False) + "\n" for part in parts).encode()


def test_a_blob_is_sent_whole_under_its_digest(played: PlayedServer, server: OllamaServer, gguf: Path) -> None:
    played.answers[("POST", "/api/blobs")] = [(201, None)]
    server.upload_blob(gguf, "abc")
    assert [(method, path) for method, path, _ in played.requests] == [("POST", "/api/blobs/sha256:abc")]
    assert played.asked("POST", "/api/blobs") == [gguf.read_bytes()]


def test_an_upload_that_breaks_off_is_begun_again(played: PlayedServer, server: OllamaServer, gguf: Path) -> None:
    played.answers[("POST", "/api/blobs")] = [HANG_UP, (200, None)]
    server.upload_blob(gguf, sha256_of(gguf))
    assert played.asked("POST", "/api/blobs") == [gguf.read_bytes()] * 2


def test_a_file_that_is_not_the_one_that_was_quantized(played: PlayedServer, server: OllamaServer, gguf: Path) -> None:
    played.answers[("POST", "/api/blobs")] = [(400, {"error": "digest mismatch, expected a, got b"})]
    with pytest.raises(OllamakeError, match=r"m\.gguf is not the file that was quantized.*digest mismatch.*Delete it"):
        server.upload_blob(gguf, "a")
    played.answers[("POST", "/api/blobs")] = [(400, {"error": "another reason"})]
    with pytest.raises(OllamakeError, match=r"upload of m\.gguf: .* refuses: 400 another reason$"):
        server.upload_blob(gguf, "a")


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_whether_a_blob_is_there(played: PlayedServer, server: OllamaServer, status: int, there: bool) -> None:
    played.answers[("HEAD", "/api/blobs/sha256:abc")] = [(status, None)]
    assert server.has_blob("abc") is there


def test_a_passing_failure_is_tried_again(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/create")] = [(500, {"error": "busy"}), HANG_UP, (200, {"status": "success"})]
    server.create({"model": "m"}, 0)
    assert len(played.asked("POST", "/api/create")) == 3


@pytest.mark.parametrize(
    ("answer", "tries", "words"),
    [
        ((400, {"error": "invalid model name"}), 1, "refuses: 400 invalid model name"),
        ((500, {"error": "write: no space left on device"}), 1, r"no space left.*disk of its models is full"),
        ((500, {"error": "llama.cpp failed to validate the model"}), 1, "does not know this architecture or type"),
        ((500, {"error": "write: disk quota exceeded"}), 1, "quota exceeded"),
        ((500, {"error": "open /models/blobs/sha256-0: no such file or directory"}), 1, "no such file"),
        ((500, {"error": "open /tmp/x: no such file or directory"}), 4, "no such file"),
        ((401, {"error": "unauthorized"}), 1, "OLLAMA_API_KEY"),
        ((403, b""), 1, "403 Forbidden.*OLLAMA_API_KEY"),
        ((502, b"<html>proxy</html>"), 4, "502 <html>proxy</html>"),
        ((500, {"error": "busy"}), 4, "refuses: 500 busy$"),
        ((200, {"status": "writing manifest"}), 1, "it says 'writing manifest', expected 'success'"),
        (HANG_UP, 4, "failed 4 times .*what is finished is kept"),
    ],
)
def test_a_refusal_is_told_after_as_many_tries_as_may_help(
    played: PlayedServer, server: OllamaServer, answer: Any, tries: int, words: str
) -> None:
    played.answers[("POST", "/api/create")] = [answer]
    with pytest.raises(OllamakeError, match=words) as caught:
        server.create({"model": "m"}, 0)
    assert played.address in str(caught.value)
    assert len(played.asked("POST", "/api/create")) == tries


def test_a_server_that_is_silent_for_too_long(played: PlayedServer) -> None:
    def sleeps(_: bytes) -> tuple[int, Any]:
        time.sleep(0.15)
        return 200, {"models": []}

    played.answers[("GET", "/api/ps")] = [sleeps]
    with pytest.raises(OllamakeError, match=r"silent for too long, ReadTimeout"):
        OllamaServer(played.address, patience=0.05).is_loaded("m")
    # Where it has to compute it may take twenty times as long.
    played.answers[("POST", "/api/create")] = [lambda body: (sleeps(body)[0], {"status": "success"})]
    OllamaServer(played.address, patience=0.05).create({"model": "m"}, 0)


def test_what_a_server_shows(played: PlayedServer, server: OllamaServer) -> None:
    blob = f"/models/blobs/sha256-{'0a' * 32}"
    text = f'# by ollama\n# FROM m:latest\n\nFROM {blob}\nSYSTEM """\nFROM /x/sha256-{"1" * 64}\n"""\n'
    played.answers[("POST", "/api/show")] = [
        (
            200,
            {
                "modelfile": text,
                "system": "S",
                "template": "T",
                "license": "a\nb",
                "parameters": 'top_k    3\nstop     "a b"\nstop     "\\n"',
            },
        )
    ]
    shown = server.show("m")
    assert (shown.weights, shown.weights_path) == ("0a" * 32, blob)
    assert (shown.system, shown.template, shown.license) == ("S", "T", "a\nb")
    assert shown.parameters == {"top_k": ["3"], "stop": ['"a b"', '"\\n"']}
    played.answers[("POST", "/api/show")] = [(200, {"modelfile": "FROM llama3\n"})]
    empty = server.show("m")
    assert (empty.weights, empty.system, empty.parameters) == (None, "", {})


def test_a_model_that_a_server_cannot_show(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/show")] = [(404, {"error": "model 'm' not found"})]
    with pytest.raises(NoSuchModel, match=rf"{played.address} cannot show m: 404 model 'm' not found"):
        server.show("m")
    assert len(played.asked("POST", "/api/show")) == 1


def test_a_version_is_asked_for_again_of_a_server_that_has_answered_before(
    played: PlayedServer, server: OllamaServer
) -> None:
    busy, version = (503, {"error": "busy"}), (200, {"version": "0.33.0"})
    played.answers[("GET", "/api/version")] = [busy, version]
    with pytest.raises(ServerUnreachable, match="503"):
        server.version()
    played.answers[("GET", "/api/version")] = [busy, HANG_UP, version]
    assert server.version(once=False) == "0.33.0"


def test_the_list_of_models_has_full_names_in_lower_case(played: PlayedServer, server: OllamaServer) -> None:
    models = [{"name": "M:Q8_0", "digest": "a"}, {"name": "me/n", "digest": "b"}, {"name": "h:1/me/o:t", "digest": "c"}]
    played.answers[("GET", "/api/tags")] = [(200, {"models": models})]
    host = "registry.ollama.ai"
    assert server.digests() == {
        (host, "library", "m", "q8_0"): "a",
        (host, "me", "n", "latest"): "b",
        ("h:1", "me", "o", "t"): "c",
    }
    played.answers[("GET", "/api/tags")] = [(200, {"models": None})]
    assert server.digests() == {}


@pytest.mark.parametrize("answer", [(200, ["not Ollama"]), (200, b"<html>"), (200, {"models": [{}]})])
@pytest.mark.parametrize("once", [True, False])
def test_a_list_that_is_none(played: PlayedServer, server: OllamaServer, answer: Any, once: bool) -> None:
    played.answers[("GET", "/api/tags")] = [answer]
    with pytest.raises(ServerUnreachable, match="does not list its models"):
        server.digests(once)


def test_a_list_that_is_asked_for_once(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("GET", "/api/tags")] = [(500, {"error": "busy"}), (200, {"models": []})]
    with pytest.raises(ServerUnreachable, match="500"):
        server.digests(once=True)
    assert len(played.asked("GET", "/api/tags")) == 1
    played.answers[("GET", "/api/tags")] = [(500, {"error": "busy"}), (200, {"models": []})]
    assert server.digests() == {}


def test_whether_a_model_is_loaded_whatever_the_spelling_of_its_name(
    played: PlayedServer, server: OllamaServer
) -> None:
    played.answers[("GET", "/api/ps")] = [(200, {"models": [{"name": "registry.ollama.ai/library/M:latest"}]})]
    assert server.is_loaded("m")
    assert not server.is_loaded("m:q8_0")
    played.answers[("GET", "/api/ps")] = [(200, {"models": None})]
    assert not server.is_loaded("m")


def test_unloading(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/generate")] = [(200, {})]
    server.unload("m")
    assert [json.loads(body) for body in played.asked("POST", "/api/generate")] == [{"model": "m", "keep_alive": 0}]


def test_a_prompt_is_rendered_without_being_answered(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/chat")] = [(200, {"_debug_info": {"rendered_template": "<s>\u2028"}})]
    assert server.rendered("m", MESSAGES) == "<s>\u2028"
    assert server.rendered("m", MESSAGES, [{"type": "function"}]) == "<s>\u2028"
    without, with_tools = (json.loads(body) for body in played.asked("POST", "/api/chat"))
    assert without == {"model": "m", "messages": MESSAGES, "_debug_render_only": True, "stream": False}
    assert with_tools["tools"] == [{"type": "function"}]


@pytest.mark.parametrize("answer", [{"message": {"content": "an answer"}}, ["none"], {"_debug_info": None}])
def test_a_server_that_answers_instead_of_rendering(played: PlayedServer, server: OllamaServer, answer: Any) -> None:
    played.answers[("POST", "/api/chat")] = [(200, answer)]
    with pytest.raises(OllamakeError, match="does not show the prompt it renders"):
        server.rendered("m", MESSAGES)


def test_tools_that_a_model_does_not_take_are_refused_at_once(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/chat")] = [(500, {"error": "m does not support tools"})]
    with pytest.raises(OllamakeError, match="does not support tools"):
        server.rendered("m", MESSAGES, [{}])
    assert len(played.asked("POST", "/api/chat")) == 1


def test_token_ids_of_a_prompt(played: PlayedServer, server: OllamaServer) -> None:
    played.answers[("POST", "/api/generate")] = [(200, {"context": [5, 6, 7], "prompt_eval_count": 3}), (200, {})]
    assert server.token_ids("m", "P") == ([5, 6, 7], 3)
    assert server.token_ids("m", "P") == ([], 0)
    body = json.loads(played.asked("POST", "/api/generate")[0])
    # Neither the model's TEMPLATE nor its system prompt may be put around the prompt.
    assert (body["prompt"], body["template"], body["system"]) == ("P", "{{ .Prompt }}", "")
    assert body["options"]["num_predict"] == 1


def test_an_answer_is_put_together_from_its_parts(played: PlayedServer, server: OllamaServer) -> None:
    parts = [{"message": {"content": text}} for text in ("半径は", "280m\n", "\u2028 \x85|", "。")]
    played.answers[("POST", "/api/chat")] = [(200, ndjson(*parts, {"message": None}, {"done": True}))]
    assert server.answer("m", MESSAGES, {"seed": 1}) == "半径は280m\n\u2028 \x85|。"
    body = json.loads(played.asked("POST", "/api/chat")[0])
    assert body == {"model": "m", "messages": MESSAGES, "options": {"seed": 1}, "stream": True}


def test_what_came_before_a_connection_broke_is_not_part_of_the_answer(
    played: PlayedServer, server: OllamaServer
) -> None:
    whole = ndjson({"message": {"content": "yes"}}, {"done": True})
    broken = Cut(ndjson({"message": {"content": "no"}}))
    played.answers[("POST", "/api/chat")] = [(200, broken), (503, {"error": "loading"}), (200, whole)]
    assert server.answer("m", MESSAGES, {}) == "yes"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            ndjson({"message": {"content": "a"}}, {"error": "out of memory"}),
            "m at http.* did not answer: out of memory",
        ),
        (b"<html>", "not JSON: <html>"),
        (b"[1]\n", r"not an object: \[1\]"),
    ],
)
def test_an_answer_that_ends_in_an_error(
    played: PlayedServer, server: OllamaServer, content: bytes, words: str
) -> None:
    played.answers[("POST", "/api/chat")] = [(200, content)]
    with pytest.raises(OllamakeError, match=words):
        server.answer("m", MESSAGES, {})


def test_long_waits_are_told(
    played: PlayedServer, server: OllamaServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ollamake.heartbeat.SECONDS_BETWEEN_LINES", 0.02)
    played.answers[("POST", "/api/create")] = [lambda _: (time.sleep(0.1), (200, {"status": "success"}))[1]]
    with caplog.at_level(logging.INFO, "ollamake"):
        server.create({"model": "m:q8_0"}, 0)
    assert f"{played.address} creates m:q8_0: 0 s" in caplog.text


def test_no_server() -> None:
    with pytest.raises(ServerUnreachable, match=r"no Ollama server answers at http://127\.0\.0\.1:1 .*ollama serve"):
        OllamaServer("127.0.0.1:1").version()


@pytest.mark.parametrize("answer", [(200, ["not Ollama"]), (200, b"<html>"), (404, {}), (200, {})])
def test_something_else_at_the_address(played: PlayedServer, server: OllamaServer, answer: Any) -> None:
    played.answers = {("GET", "/"): [answer]}
    with pytest.raises(ServerUnreachable, match="no Ollama server answers"):
        server.version()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (None, "http://127.0.0.1:11434"),
        ("example.com", "http://example.com:11434"),
        ("https://example.com/path", "https://example.com:443/path"),
        ("[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_addresses(host: str | None, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert OllamaServer(host).address in (address, address.replace(":443", ""))


def test_no_address() -> None:
    with pytest.raises(OllamakeError, match=r"ollama\.host: 'gpu:port' is not an address"):
        OllamaServer("gpu:port")
