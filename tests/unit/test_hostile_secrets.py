"""Keys and passwords are in no message, record or log; where they must be written nobody else may read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from played_server import playing

from ollamake.endpoint import Endpoint
from ollamake.errors import OllamakeError
from ollamake.hidden_keys import host_without_key, without_keys
from ollamake.ollama_server import OllamaServer
from ollamake.rag_file import keep_backup, read_rag_file, replace_rag_file
from ollamake.rag_update import shown_difference

SECRET = "Geheim-9f3a61"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("host", [f"http://me:{SECRET}@gpu:11434", f"me:{SECRET}@gpu", f"https://{SECRET}@gpu/path"])
def test_a_password_in_the_servers_address_is_refused_and_not_shown(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (lambda: host_without_key(host), lambda: OllamaServer(host)):
        with pytest.raises(OllamakeError, match="a key belongs in OLLAMA_API_KEY") as found:
            work()
        assert SECRET not in str(found.value)
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(OllamakeError, match="OLLAMA_API_KEY"):
        OllamaServer(None)


def test_a_password_in_the_address_of_an_endpoint_is_sent_and_not_shown() -> None:
    with playing() as server:
        server.answers["GET", "/v1/models"] = [(200, {"data": [{"id": "m"}]}), (401, {"error": "no"})]
        address = server.address.replace("://", f"://me:{SECRET}@")
        with Endpoint(f"{address}/v1") as endpoint:
            assert endpoint.models() == [{"id": "m"}]
            assert endpoint.url == f"{server.address}/v1"
            with pytest.raises(OllamakeError) as found:
                endpoint.models()
    assert SECRET not in str(found.value)
    with Endpoint(f"http://me:{SECRET}@127.0.0.1:1/v1") as endpoint, pytest.raises(OllamakeError) as found:
        endpoint.models()
    assert SECRET not in str(found.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"api_key: {SECRET}", "api_key: ***"),
        (f"  openai-api-key: '{SECRET} x'  # ours", "  openai-api-key: ***  # ours"),
        (f'{{"model": "m", "password": "{SECRET}", "top_k": 5}}', '{"model": "m", "password": ***, "top_k": 5}'),
        (f"{{model: m, secret_token: {SECRET}, top_k: 5}}", "{model: m, secret_token: ***, top_k: 5}"),
        (f"url: https://me:{SECRET}@host/x", "url: https://***@host/x"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=***"),
        ("key: sk-proj-abcdefghijklmnop", "key: ***"),
        ("max_tokens: 4096\ntokenizer: qwen\nnum_ctx: 8192", "max_tokens: 4096\ntokenizer: qwen\nnum_ctx: 8192"),
    ],
)
def test_keys_are_hidden_in_what_is_shown(text: str, shown: str) -> None:
    assert without_keys(text) == shown


def test_the_difference_of_a_file_shows_no_key_beside_what_changes() -> None:
    before = f"llm:\n  api_key: {SECRET}\n  model: a\n  password: {SECRET}\n".encode()
    found = shown_difference(before, before.replace(b"model: a", b"model: b"), "app.yaml")
    assert "-  model: a\n+  model: b" in found
    assert SECRET not in found


def test_a_users_file_and_its_backup_stay_the_users(tmp_path: Path, open_umask: None) -> None:
    path = tmp_path / "app.yaml"
    path.write_text(f"api_key: {SECRET}\n")
    path.chmod(0o600)
    file = read_rag_file(path)
    backup = keep_backup(file)
    replace_rag_file(file, file.content + b"model: b\n")
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, backup)} == {0o600}
