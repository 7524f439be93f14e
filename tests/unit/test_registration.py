"""A registration goes where the configuration says, is checked, and says in its marker what was asked of whom."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from played_server import HANG_UP, PlayedServer, playing

from ollamake import ollama_server, registration
from ollamake.create_request import CreateRequest, request_of_marker
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.installed_ollama import installed_version
from ollamake.ollama_manifest import NEWEST, form_of_version, manifest_of
from ollamake.ollama_server import ServerUnreachable
from ollamake.ollama_store import OllamaStore
from ollamake.registration import Place, chat_command, marker_differences, register

REQUEST = CreateRequest("m:q8_0", "m.gguf", "S", None, ("MIT",), {"top_k": 3, "stop": ["<a>\n"]}, {"top_k": "somebody"})
NOBODY = "127.0.0.1:1"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def record(gguf: Path) -> dict[str, Any]:
    size = gguf.stat().st_size
    return {"sha256": sha256_of(gguf), "size": size, "architecture": "qwen2", "parameters": 2048, "file_type": 7}


@pytest.fixture
def played(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedServer]:
    """A server without the blob, that then creates and has what REQUEST asks for."""
    monkeypatch.setattr(ollama_server, "_FIRST_PAUSE", 0.01)
    with playing() as server:
        shown = {
            "modelfile": f"# x\nFROM /models/blobs/sha256-{record['sha256']}\n",
            "system": "S",
            "license": "MIT",
            "parameters": 'top_k                          3\nstop    "<a>\\n"',
        }
        server.answers |= {
            ("HEAD", "/api/blobs"): [(404, None), (200, None)],
            ("POST", "/api/blobs"): [(201, None)],
            ("POST", "/api/create"): [(200, {"status": "success"})],
            ("POST", "/api/show"): [(200, shown)],
            ("GET", "/api/tags"): [(200, {"models": [{"name": "M:Q8_0", "digest": "abc"}]})],
            ("GET", "/api/ps"): [(200, {"models": [{"name": "m:q8_0"}]})],
            ("POST", "/api/generate"): [(200, {})],
        }
        yield server


def go(place: Place | PlayedServer, gguf: Path, record: dict[str, Any]) -> dict[str, Any]:
    where = place if isinstance(place, Place) else Place("server", place.address, str(gguf.parent / "store"))
    return register(REQUEST, gguf, record, where)


def test_a_registration_on_a_server(played: PlayedServer, gguf: Path, record: dict[str, Any]) -> None:
    marker = go(Place("auto", played.address, "unused"), gguf, record)
    when = datetime.fromisoformat(marker.pop("time"))
    assert datetime.now(UTC) - when < timedelta(minutes=1)
    assert marker == {
        "name": "m:q8_0",
        "target": "server",
        "host": played.address,
        "server_version": "9.9",
        "manifest_digest": "abc",
        "gguf": {"file": str(gguf), "sha256": record["sha256"], "size": 7000},
        "request": REQUEST.as_api(record["sha256"]),
    }
    assert played.asked("POST", f"/api/blobs/sha256:{record['sha256']}") == [gguf.read_bytes()]
    assert [json.loads(body) for body in played.asked("POST", "/api/create")] == [marker["request"]]


def test_a_loaded_model_is_let_go_while_its_name_still_means_it(
    played: PlayedServer, gguf: Path, record: dict[str, Any]
) -> None:
    go(played, gguf, record)
    order = [path for method, path, _ in played.requests if method == "POST"]
    assert order.index("/api/generate") < order.index("/api/create")
    played.requests.clear()
    played.answers[("GET", "/api/ps")] = [(200, {"models": [{"name": "m:q4_k_m"}]})]
    go(played, gguf, record)
    assert not played.asked("POST", "/api/generate")


def test_a_blob_that_is_there_is_not_sent_again(played: PlayedServer, gguf: Path, record: dict[str, Any]) -> None:
    played.answers[("HEAD", "/api/blobs")] = [(200, None)]
    go(played, gguf, record)
    assert not played.asked("POST", "/api/blobs")


def test_a_server_that_fails_in_passing_is_asked_again(
    played: PlayedServer, gguf: Path, record: dict[str, Any]
) -> None:
    played.answers[("POST", "/api/create")] = [(500, {"error": "busy"}), HANG_UP, (200, {"status": "success"})]
    assert go(played, gguf, record)["name"] == "m:q8_0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({("POST", "/api/create"): [(400, {"error": "invalid model name"})]}, "refuses: 400 invalid model name"),
        ({("POST", "/api/create"): [(200, {"status": "writing manifest"})]}, "expected 'success'"),
        ({("POST", "/api/show"): [(200, {"modelfile": f"FROM /b/sha256-{'0' * 64}"})]}, "weights: asked for sha256"),
        ({("POST", "/api/show"): [(200, {"system": "S "})]}, "system: asked for 'S', it has 'S '"),
        ({("GET", "/api/tags"): [(200, {"models": []})]}, "the server does not list it"),
        ({("HEAD", "/api/blobs"): [(404, None)]}, "the blob of the weights (sha256 "),
    ],
)
def test_what_a_server_does_not_do_or_hold_is_named(
    played: PlayedServer, gguf: Path, record: dict[str, Any], change: dict[Any, Any], words: str
) -> None:
    played.answers |= change
    with pytest.raises(OllamakeError) as caught:
        go(played, gguf, record)
    assert words in str(caught.value)
    assert played.address in str(caught.value)
    # Again only where blobs may have vanished.
    assert len(played.asked("POST", "/api/create")) == (3 if "list it" in words or "blob" in words else 1)


def test_weights_that_are_swept_before_the_create_are_sent_again(
    played: PlayedServer, gguf: Path, record: dict[str, Any]
) -> None:
    gone = (500, {"error": "open /models/blobs/sha256-0: no such file or directory"})
    played.answers[("HEAD", "/api/blobs")] = [(200, None), (404, None), (200, None)]
    played.answers[("POST", "/api/create")] = [gone, (200, {"status": "success"})]
    go(played, gguf, record)
    assert len(played.asked("POST", "/api/create")) == 2
    assert played.asked("POST", "/api/blobs") == [gguf.read_bytes()]


def test_weights_that_are_swept_after_the_create_are_sent_and_created_again(
    played: PlayedServer, gguf: Path, record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # There at first; gone when it is checked and when it is looked for again. Between are the other blobs.
    gone_once = [(200, None), (404, None), (200, None), (200, None), (200, None), (404, None), (200, None)]
    played.answers[("HEAD", "/api/blobs")] = list(gone_once)
    with caplog.at_level(logging.INFO, "ollamake"):
        go(played, gguf, record)
    assert len(played.asked("POST", "/api/create")) == 2
    assert played.asked("POST", "/api/blobs") == [gguf.read_bytes()]
    assert "the blob of the weights" in caplog.text


def test_a_model_that_is_swept_before_it_is_shown_is_created_again(
    played: PlayedServer, gguf: Path, record: dict[str, Any]
) -> None:
    played.answers[("POST", "/api/show")].insert(0, (404, {"error": "model 'm:q8_0' not found"}))
    go(played, gguf, record)
    assert len(played.asked("POST", "/api/create")) == 2


def test_a_server_whose_blobs_vanish_for_ever_is_given_up(
    played: PlayedServer, gguf: Path, record: dict[str, Any]
) -> None:
    played.answers[("POST", "/api/create")] = [
        (500, {"error": "open /models/blobs/sha256-0: no such file or directory"})
    ]
    with pytest.raises(OllamakeError, match="no such file"):
        go(played, gguf, record)
    assert len(played.asked("POST", "/api/create")) == 3


def test_what_another_has_written_is_not_written_over(played: PlayedServer, gguf: Path, record: dict[str, Any]) -> None:
    """A system prompt of somebody else's is no blob that vanished: creating again would only begin a quarrel."""
    played.answers[("POST", "/api/show")] = [(200, {"system": "another's"})]
    with pytest.raises(OllamakeError, match=r"not what was asked for:(?s:.*)Somebody else may have written to it"):
        go(played, gguf, record)
    assert len(played.asked("POST", "/api/create")) == 1


@pytest.mark.parametrize("proven", [True, False])
def test_it_is_told_whether_the_manifest_is_the_predicted_one(
    played: PlayedServer, gguf: Path, record: dict[str, Any], caplog: pytest.LogCaptureFixture, proven: bool
) -> None:
    digest = manifest_of(REQUEST, record, form_of_version("9.9")).digest if proven else "abc"
    # A version has three numbers; this one has two, so it is taken for the newest.
    played.answers[("GET", "/api/tags")] = [(200, {"models": [{"name": "m:q8_0", "digest": digest}]})]
    with caplog.at_level(logging.INFO, "ollamake"):
        assert go(played, gguf, record)["manifest_digest"] == digest
    assert "verified: weights, system, template, license, parameters and every blob" in caplog.text
    assert ("byte for byte" in caplog.text) is proven


def test_a_registration_in_a_store(
    tmp_path: Path, gguf: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "installed_version", lambda: None)
    marker = go(Place("store", None, str(tmp_path / "store")), gguf, record)
    del marker["time"]
    assert marker == {
        "name": "m:q8_0",
        "target": "store",
        "store": str(tmp_path / "store"),
        "server_version": None,
        "manifest_digest": manifest_of(REQUEST, record, NEWEST).digest,
        "gguf": {"file": str(gguf), "sha256": record["sha256"], "size": 7000},
        "request": REQUEST.as_api(record["sha256"]),
    }


def test_a_store_is_written_in_the_form_of_the_ollama_that_is_installed(
    tmp_path: Path, gguf: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "installed_version", lambda: "0.17.4")
    monkeypatch.chdir(tmp_path)
    marker = go(Place("store", None, "store"), gguf, record)
    layers = OllamaStore(Path("store")).read("m:q8_0")["layers"]
    assert layers[0]["from"] == str(tmp_path / "store/blobs" / f"sha256-{record['sha256']}")
    assert marker["server_version"] == "0.17.4"


def test_what_a_store_does_not_hold_afterwards_is_named(
    tmp_path: Path, gguf: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OllamaStore.write

    def loses_the_weights(self: OllamaStore, *arguments: Any) -> None:
        real(self, *arguments)
        self.blob_file(record["sha256"]).unlink()

    monkeypatch.setattr(OllamaStore, "write", loses_the_weights)
    with pytest.raises(OllamakeError, match=r"m:q8_0 was registered in .*store, but(?s:.*)the blob of the model"):
        go(Place("store", None, str(tmp_path / "store")), gguf, record)


@pytest.mark.parametrize("target", ["auto", "server", "store"])
def test_where_a_model_goes_when_no_server_answers(
    tmp_path: Path, gguf: Path, record: dict[str, Any], caplog: pytest.LogCaptureFixture, target: str
) -> None:
    place = Place(target, NOBODY, str(tmp_path / "store"))
    if target == "server":
        with pytest.raises(ServerUnreachable, match=r"no Ollama server answers at http://127\.0\.0\.1:1"):
            go(place, gguf, record)
        return
    with caplog.at_level(logging.INFO, "ollamake"):
        assert go(place, gguf, record)["target"] == "store"
    assert ("registering in the store" in caplog.text) == (target == "auto")


def test_a_store_that_is_demanded_is_taken_though_a_server_answers(
    played: PlayedServer, tmp_path: Path, gguf: Path, record: dict[str, Any]
) -> None:
    assert go(Place("store", played.address, str(tmp_path / "store")), gguf, record)["target"] == "store"
    assert played.requests == []


def test_a_server_may_be_silent_as_long_as_the_configuration_says(played: PlayedServer) -> None:
    def sleeps(_: bytes) -> tuple[int, Any]:
        time.sleep(0.1)
        return 200, {"models": []}

    played.answers[("GET", "/api/ps")] = [sleeps]
    impatient = Place("server", played.address, "s", timeout=0.01).server()
    patient = Place("server", played.address, "s").server()
    assert impatient is not None
    assert patient is not None
    with pytest.raises(OllamakeError, match="silent for too long"):
        impatient.is_loaded("m")
    assert not patient.is_loaded("m")


def test_a_gguf_that_changed_since_its_record(tmp_path: Path, gguf: Path, record: dict[str, Any]) -> None:
    with pytest.raises(OllamakeError, match=r"m\.gguf has 7000 bytes, its record says 1: it was changed or cut short"):
        go(Place("store", None, str(tmp_path / "store")), gguf, record | {"size": 1})
    assert not (tmp_path / "store").exists()


def test_registrations_on_one_place_wait_for_each_other(
    tmp_path: Path,
    gguf: Path,
    record: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Spelled otherwise, the same store; a lock knows its own process, so the second one must have its own object.
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    place = Place("store", None, "./store/")

    def other_run() -> None:
        go(place, gguf, record)
        done.append("other")

    with caplog.at_level(logging.INFO, "ollamake"), registration._one_at_a_time(str(tmp_path / "store")):
        thread = threading.Thread(target=other_run)
        thread.start()
        deadline = time.monotonic() + 10
        while "waiting for it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert not done
        assert not (tmp_path / "store").exists()
        assert f"another run registers on {tmp_path / 'store'}; waiting for it" in caplog.text
    thread.join()
    assert done == ["other"]


def test_a_marker_is_compared_with_what_its_place_holds(
    played: PlayedServer, tmp_path: Path, gguf: Path, record: dict[str, Any]
) -> None:
    of_server = go(played, gguf, record)
    of_store = go(Place("store", None, str(tmp_path / "store")), gguf, record)
    for marker in (of_server, of_store):
        assert marker_differences(marker, *request_of_marker(marker)) == []
    played.answers[("GET", "/api/tags")] = [(200, {"models": [{"name": "m:q8_0", "digest": "new"}]})]
    assert marker_differences(of_server, *request_of_marker(of_server)) == [
        "manifest: abc was registered, it now has new"
    ]
    # Another file of the same size: only a look at every byte sees it.
    blob = OllamaStore(tmp_path / "store").blob_file(record["sha256"])
    blob.unlink()
    blob.write_bytes(b"Weights" * 1000)
    (difference,) = marker_differences(of_store, *request_of_marker(of_store))
    assert "it is damaged" in difference
    with pytest.raises(ServerUnreachable):
        marker_differences(of_server | {"host": NOBODY}, *request_of_marker(of_server))


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ({"target": "server", "host": "http://127.0.0.1:11434", "name": "m:q8_0"}, "ollama run m:q8_0"),
        (
            {"target": "server", "host": "http://gpu:11434", "name": "m:q8_0"},
            "OLLAMA_HOST=http://gpu:11434 ollama run m:q8_0",
        ),
        (
            {"target": "server", "host": "https://h/a;b", "name": "m:q8_0"},
            "OLLAMA_HOST='https://h/a;b' ollama run m:q8_0",
        ),
        ({"target": "store", "store": "s", "name": "m"}, "python scripts/chat.py 'a b/registered.json'"),
    ],
)
def test_chat_command(marker: dict[str, Any], command: str) -> None:
    assert chat_command(marker, "a b/registered.json", "scripts/chat.py") == command


def ollama_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ollama").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.33.0", "0.33.0"),
        ("ollama version is 0.5.1\nWarning: client version is 0.17.4", "0.17.4"),
        ("ollama version is 0.32.7", "0.32.7"),
        ("", None),
        ("usage: something else", None),
    ],
)
def test_version_of_the_ollama_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, version: str | None
) -> None:
    asks_nobody = 'test "$OLLAMA_HOST" = 127.0.0.1:1 || exit 1'
    ollama_program(tmp_path, f"{asks_nobody}\ncat <<'END'\n{says}\nEND", monkeypatch)
    assert installed_version() == version


def test_no_ollama_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_version() is None
