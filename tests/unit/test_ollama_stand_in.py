"""The stand-in for Ollama 0.33, asked by clients of their own: what it stores, says and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from gguf import GGUFReader
from stand_in.running import StandIn, standing_in
from stand_in.tiny_gguf import CHATML, OTHER, write_gguf


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def server(llama_cpp: Callable[[str], Path], tmp_path: Path) -> Iterator[StandIn]:
    with standing_in(tmp_path / "models", tmp_path / "log", llama_cpp("llama-quantize")) as running:
        yield running


@pytest.fixture
def http(server: StandIn) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture(scope="module")
def empty_server(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A server on which no model is ever created."""
    folder = tmp_path_factory.mktemp("empty")
    with standing_in(folder / "models", folder / "log", llama_cpp("llama-quantize")) as running:
        yield running


def upload(http: httpx.Client, content: bytes) -> str:
    digest = sha256(content)
    assert http.post(f"/api/blobs/{digest}", content=content).status_code in (200, 201)
    return digest


def create(http: httpx.Client, model: str, digest: str, **more: Any) -> None:
    body = {"model": model, "files": {"tiny.gguf": digest}, "stream": False, **more}
    answer = http.post("/api/create", json=body)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})


def manifest(server: StandIn, path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((server.models / "manifests/registry.ollama.ai/library" / path).read_bytes())
    return content


def blob(server: StandIn, digest: str) -> bytes:
    return (server.models / "blobs" / digest.replace(":", "-")).read_bytes()


def blobs(server: StandIn) -> set[str]:
    return {path.name for path in (server.models / "blobs").iterdir()}


def test_the_stored_bytes(server: StandIn, http: httpx.Client, gguf: Path) -> None:
    """Manifest, config and params are the bytes of Go's JSON encoder, and the weights are llama-quantize's copy."""
    uploaded = upload(http, gguf.read_bytes())
    parameters = {"top_k": 3, "temperature": 1.0, "min_p": 0.00000001, "stop": ["<b>&"]}
    messages = [{"role": "User", "content": "質問"}, {"role": "assistant", "content": "a\u2028b"}]
    create(http, "tiny:Q8_0", uploaded, system="道路", license=["L1", "L2"], parameters=parameters, messages=messages)
    stored = (server.models / "manifests/registry.ollama.ai/library/tiny/Q8_0").read_bytes()
    layers = manifest(server, "tiny/Q8_0")["layers"]
    kinds = ["model", "system", "license", "license", "params", "messages"]
    assert [layer["mediaType"].rpartition(".")[2] for layer in layers] == kinds
    contents = [blob(server, layer["digest"]) for layer in layers]
    assert contents[1:] == [
        "道路".encode(),
        b"L1",
        b"L2",
        b'{"min_p":1e-8,"stop":["\\u003cb\\u003e\\u0026"],"temperature":1,"top_k":3}\n',
        '[{"role":"user","content":"質問"},{"role":"assistant","content":"a\\u2028b"}]\n'.encode(),
    ]
    config = (
        b'{"model_format":"gguf","model_family":"qwen2","model_families":["qwen2"],"model_type":"16K","file_type":"F16",'
        b'"architecture":"amd64","os":"linux"}\n'
    )
    image = "application/vnd.ollama.image."
    written = ",".join(
        f'{{"mediaType":"{image}{kind}","digest":"{sha256(content)}","size":{len(content)}}}'
        for kind, content in zip(kinds, contents, strict=True)
    )
    assert stored.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":'
        f'{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{sha256(config)}","size":{len(config)}}}'
        f',"layers":[{written}]}}\n'
    )
    assert blob(server, sha256(config)) == config
    assert layers[0]["digest"] != uploaded
    assert uploaded.replace(":", "-") in blobs(server), "the uploaded file stays, and nothing refers to it"
    assert {tensor.name for tensor in GGUFReader(gguf).tensors} == {
        tensor.name for tensor in GGUFReader(server.models / "blobs" / layers[0]["digest"].replace(":", "-")).tensors
    }
    listed = http.get("/api/tags").json()["models"]
    assert [(model["name"], f"sha256:{model['digest']}") for model in listed] == [("tiny:Q8_0", sha256(stored))]


def test_a_copy_is_copied_as_it_is(server: StandIn, http: httpx.Client, gguf: Path) -> None:
    create(http, "first", upload(http, gguf.read_bytes()))
    copied = manifest(server, "first/latest")["layers"][0]["digest"]
    create(http, "second", copied)
    assert manifest(server, "second/latest") == manifest(server, "first/latest")


def test_the_python_client(server: StandIn, gguf: Path) -> None:
    client = ollama.Client(server.address)
    digest = client.create_blob(gguf)
    statuses = [step.status for step in client.create("tiny", files={"x": digest}, system="S", stream=True)]
    assert statuses[0] == "parsing GGUF"
    assert statuses[-2:] == ["writing manifest", "success"]
    assert client.create("tiny", files={"x": digest}, system="T").status == "success"
    assert [model.model for model in client.list().models] == ["tiny:latest"]
    shown = client.show("tiny")
    assert shown.details is not None
    assert shown.details.quantization_level == "F16"
    assert shown.template == OTHER
    client.copy("tiny", "other/tiny:v2")
    assert {model.model for model in client.list().models} == {"tiny:latest", "other/tiny:v2"}
    assert client.delete("tiny").status == "success"
    with pytest.raises(ollama.ResponseError, match=r"model 'tiny' not found") as caught:
        client.delete("tiny")
    assert caught.value.status_code == 404
    assert client.ps().models == []


def test_shown(server: StandIn, http: httpx.Client, gguf: Path) -> None:
    parameters = {"num_ctx": 1048576, "stop": ['"\n', "全　角"], "top_p": 0.95}
    create(http, "tiny", upload(http, gguf.read_bytes()), system='two\n"lines"', parameters=parameters)
    shown = http.post("/api/show", json={"model": "TINY"}).json()
    assert sorted(shown["parameters"].splitlines()) == [
        "num_ctx                        1.048576e+06",
        'stop                           "\\"\\n"',
        'stop                           "全\\u3000角"',
        "top_p                          0.95",
    ]
    weights = manifest(server, "tiny/latest")["layers"][0]["digest"]
    assert shown["modelfile"].splitlines()[:5] == [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        "# FROM tiny:latest",
        "",
        f"FROM {server.models}/blobs/{weights.replace(':', '-')}",
    ]
    assert 'SYSTEM """two\n"lines""""\n' in shown["modelfile"]
    assert shown["system"] == 'two\n"lines"'
    assert shown["capabilities"] == ["completion"]
    assert shown["details"]["parameter_size"] == "16K"
    info = shown["model_info"]
    assert (info["general.architecture"], info["general.parameter_count"]) == ("qwen2", 15648)
    assert info["tokenizer.ggml.tokens"] is None
    assert info["qwen2.attention.layer_norm_rms_epsilon"] == 1e-6
    assert not {"general.name", "tokenizer.chat_template"} & set(info)


def test_chatml_is_recognised(http: httpx.Client, server: StandIn, tmp_path: Path) -> None:
    """Ollama puts a TEMPLATE and stops of its own in; what the request says of them wins."""
    digest = upload(http, write_gguf(tmp_path / "chatml.gguf", CHATML).read_bytes())
    create(http, "tiny", digest, parameters={"top_k": 1})
    shown = http.post("/api/show", json={"model": "tiny"}).json()
    assert shown["template"].startswith("{{- range .Messages }}<|im_start|>")
    assert '"stop":["\\u003c|im_start|\\u003e","\\u003c|im_end|\\u003e"],"top_k":1' in str(
        blob(server, manifest(server, "tiny/latest")["layers"][-1]["digest"]), "utf-8"
    )
    create(http, "tiny", digest, template="{{ range .Messages }}{{ .Content }}{{ end }}", parameters={"stop": ["x"]})
    shown = http.post("/api/show", json={"model": "tiny"}).json()
    assert shown["template"] == "{{ range .Messages }}{{ .Content }}{{ end }}"
    assert shown["parameters"] == f'{"stop":<30} "x"'
    assert len(blobs(server)) == 2 + 3, "the upload and its copy, template, params, config"


def test_a_jinja_that_can_more_wins_over_a_template(http: httpx.Client, tmp_path: Path) -> None:
    jinja = OTHER + "{{ tools }}<think></think>"
    digest = upload(http, write_gguf(tmp_path / "tools.gguf", jinja).read_bytes())
    create(http, "plain", digest, template="{{ range .Messages }}{{ .Content }}{{ end }}")
    shown = http.post("/api/show", json={"model": "plain"}).json()
    assert (shown["template"], shown["capabilities"]) == (jinja, ["tools", "thinking", "completion"])
    calls = '{{ if eq .Role "tool" }}{{ end }}{{ range .ToolCalls }}{{ end }}'
    able = f"{{{{ range .Messages }}}}{calls}{{{{ .Content }}}}{{{{ end }}}}{{{{ .Tools }}}}"
    create(http, "able", digest, template=able)
    shown = http.post("/api/show", json={"model": "able"}).json()
    assert (shown["template"], shown["capabilities"]) == (able, ["completion", "tools"])


def test_from_a_model(http: httpx.Client, server: StandIn, gguf: Path) -> None:
    create(http, "base", upload(http, gguf.read_bytes()), system="S", parameters={"top_k": 1, "seed": 2})
    body = {"model": "child", "from": "base", "parameters": {"top_k": 9}, "stream": False}
    assert http.post("/api/create", json=body).json() == {"status": "success"}
    layers = manifest(server, "child/latest")["layers"]
    assert [layer.get("from") for layer in layers] == ["base:latest", "base:latest", None]
    assert blob(server, layers[-1]["digest"]) == b'{"seed":2,"top_k":9}\n'
    missing = http.post("/api/create", json={"model": "child", "from": "typo", "stream": False})
    assert (missing.status_code, missing.json()["error"][:20]) == (500, "pull model manifest:")


def test_recreating_removes_what_nothing_refers_to(http: httpx.Client, server: StandIn, gguf: Path) -> None:
    digest = upload(http, gguf.read_bytes())
    create(http, "one", digest, system="first")
    create(http, "two", digest, system="first")
    create(http, "one", digest, system="second")
    texts = {blob(server, name) for name in blobs(server) if len(blob(server, name)) < 10}
    assert texts == {b"first", b"second"}
    create(http, "two", digest)
    texts = {blob(server, name) for name in blobs(server) if len(blob(server, name)) < 10}
    assert texts == {b"second"}


def test_names_keep_the_case_that_came_first(http: httpx.Client, gguf: Path) -> None:
    digest = upload(http, gguf.read_bytes())
    create(http, "Foo:Q8_0", digest)
    create(http, "bar:q8_0", digest)
    create(http, "foo:q8_0", digest)
    assert {model["name"] for model in http.get("/api/tags").json()["models"]} == {"Foo:Q8_0", "bar:Q8_0"}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"files": None}, 400, "neither 'from' or 'files' was specified"),
        ({"files": {}}, 400, "unknown type"),
        ({"files": {"x": sha256(b"text")}}, 400, "unknown type"),
        ({"files": {"x": sha256(b"missing")}}, 400, "unknown type"),
        ({"files": {"/x.gguf": "D"}}, 400, "file path must be relative"),
        ({"files": {"a/../x.gguf": "D"}}, 400, "file path must be relative"),
        ({"files": {"x.gguf": ""}}, 400, "invalid digest format"),
        ({"files": {"x.gguf": "sha256:12"}}, 500, "invalid digest format"),
        ({"files": {"x.gguf": sha256(b"missing")}}, 500, "no such file or directory"),
        ({"files": {"x.gguf": sha256(b"text")}}, 400, "supplied file was not in GGUF format"),
        ({"files": {"x.gguf": "CUT"}}, 500, "exceeds file size"),
        ({"files": {"x.gguf": "STRANGE"}}, 500, "failed to validate GGUF with llama-quantize without compatibility"),
        ({"model": "モデル"}, 400, "invalid model name"),
        ({"model": "a/b/c/d"}, 400, "invalid model name"),
        ({"model": ""}, 400, "invalid model name"),
        pytest.param({"template": "{{ .Prompt }"}, 400, "template error: template: :1: unexpected"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_refusals(
    empty_server: StandIn, gguf: Path, change: dict[str, Any], status: int, words: str, stream: bool
) -> None:
    http = httpx.Client(base_url=empty_server.address, timeout=60)
    upload(http, b"text")
    digests = {
        "D": upload(http, gguf.read_bytes()),
        "CUT": upload(http, gguf.read_bytes()[:-3000]),
        "STRANGE": upload(http, write_gguf(gguf.with_name("strange.gguf"), architecture="strange").read_bytes()),
    }
    body: dict[str, Any] = {"model": "m", "files": {"x.gguf": "D"}, "stream": stream} | change
    if body["files"] is not None:
        body["files"] = {name: digests.get(digest, digest) for name, digest in body["files"].items()}
    answer = http.post("/api/create", json={key: value for key, value in body.items() if value is not None})
    assert words in json.loads(answer.text.splitlines()[-1])["error"]
    # Once a line has been sent the status has been, too.
    assert answer.status_code == (200 if len(answer.text.splitlines()) > 1 else status)
    assert http.get("/api/tags").json() == {"models": []}
    assert all(name.startswith("sha256-") and len(name) == 71 for name in blobs(empty_server)), (
        "no temporary file is left"
    )


def test_parameters_are_not_checked(http: httpx.Client, gguf: Path) -> None:
    create(http, "m", upload(http, gguf.read_bytes()), parameters={"temprature": 1, "temperature": "hot"})


def test_blobs(http: httpx.Client, server: StandIn) -> None:
    digest = sha256(b"content")
    assert http.head(f"/api/blobs/{digest}").status_code == 404
    assert http.post(f"/api/blobs/{digest}", content=iter([b"con", b"tent"])).status_code == 201
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    assert http.post(f"/api/blobs/{digest}", content=b"anything").status_code == 200
    assert http.head("/api/blobs/sha256:12").status_code == 400
    assert http.post("/api/blobs/sha256:12", content=b"x").json() == {"error": "invalid digest format"}
    wrong = http.post(f"/api/blobs/{sha256(b'this')}", content=b"that")
    assert wrong.status_code == 400
    expected = f'digest mismatch, expected "{sha256(b"this")}", got "{sha256(b"that")}"'
    assert wrong.json() == {"error": expected}
    assert blobs(server) == {name.replace(":", "-") for name in (digest, sha256(b"that"))}


def test_a_large_upload_of_what_is_there_is_answered_at_once(http: httpx.Client) -> None:
    content = b"0" * (8 << 20)
    upload(http, content)
    assert http.post(f"/api/blobs/{sha256(content)}", content=content).status_code == 200


def test_an_upload_that_is_cut(server: StandIn, http: httpx.Client) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/blobs/{sha256(b'whole')} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
        connection.sendall(head.encode() + b"wh")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(10_000)
        assert b" 500 " in answer
        answer += connection.recv(10_000)
    assert b'{"error":"unexpected EOF"}' in answer
    assert blobs(server) == set()


def test_a_full_disk(llama_cpp: Callable[[str], Path], gguf: Path, tmp_path: Path) -> None:
    """Room for the upload and for nothing else: no manifest, and the copies are gone."""
    size = gguf.stat().st_size
    log = tmp_path / "log"
    with (
        standing_in(tmp_path / "models", log, llama_cpp("llama-quantize"), disk=size * 2) as server,
        httpx.Client(base_url=server.address) as http,
    ):
        digest = upload(http, gguf.read_bytes())
        body = {"model": "m", "files": {"x.gguf": digest}, "stream": False}
        failed = http.post("/api/create", json=body)
        assert failed.status_code == 500
        assert failed.json()["error"].startswith("write ")
        assert failed.json()["error"].endswith(": no space left on device")
        failed = http.post(f"/api/blobs/{sha256(bytes(2 * size))}", content=bytes(2 * size))
        assert failed.json()["error"].endswith(": no space left on device")
        assert blobs(server) == {digest.replace(":", "-")}
        assert http.get("/api/tags").json() == {"models": []}


def test_a_client_that_leaves_a_stream_leaves_the_work_undone(server: StandIn, http: httpx.Client, gguf: Path) -> None:
    body = json.dumps({"model": "m", "files": {"x.gguf": upload(http, gguf.read_bytes())}}).encode()
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/create HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    time.sleep(1)
    assert http.get("/api/tags").json() == {"models": []}


def test_a_killed_server_starts_again_with_what_is_whole(
    llama_cpp: Callable[[str], Path], gguf: Path, tmp_path: Path
) -> None:
    quantize = llama_cpp("llama-quantize")
    with standing_in(tmp_path / "models", tmp_path / "log", quantize) as server:
        with httpx.Client(base_url=server.address) as http:
            create(http, "m", upload(http, gguf.read_bytes()))
        server.process.kill()
        server.process.wait()
    blobs = tmp_path / "models/blobs"
    (blobs / "COPY123").write_bytes(b"left")
    (blobs / "sha256-456").write_bytes(b"left an hour ago")
    os.utime(blobs / "sha256-456", (time.time() - 4000,) * 2)
    with standing_in(tmp_path / "models", tmp_path / "log", quantize) as server:
        assert [model["name"] for model in httpx.get(f"{server.address}/api/tags").json()["models"]] == ["m:latest"]
    assert (blobs / "COPY123").exists(), "what is younger than an hour is kept"
    assert not (blobs / "sha256-456").exists()


def test_damage(http: httpx.Client, server: StandIn, gguf: Path) -> None:
    digest = upload(http, gguf.read_bytes())
    for name in ("cut", "weightless", "whole"):
        create(http, name, digest, system=name)
    library = server.models / "manifests/registry.ollama.ai/library"
    (library / "cut/latest").write_bytes((library / "cut/latest").read_bytes()[:50])
    assert {model["name"] for model in http.get("/api/tags").json()["models"]} == {"weightless:latest", "whole:latest"}
    assert http.post("/api/show", json={"model": "cut"}).status_code == 500
    weights = manifest(server, "whole/latest")["layers"][0]["digest"]
    (server.models / "blobs" / weights.replace(":", "-")).unlink()
    assert {model["name"] for model in http.get("/api/tags").json()["models"]} == {"weightless:latest", "whole:latest"}
    assert http.post("/api/show", json={"model": "whole"}).status_code == 404


def test_answers_without_a_model(http: httpx.Client, gguf: Path) -> None:
    create(http, "m", upload(http, gguf.read_bytes()))
    messages = [{"role": "user", "content": "x"}]
    for path, body, status, words in (
        ("chat", {"model": "no", "messages": messages}, 404, "model 'no' not found"),
        ("chat", {"model": "", "messages": messages}, 400, "model is required"),
        ("chat", {"model": "m", "messages": messages, "tools": [{}]}, 400, "library/m:latest does not support tools"),
        ("chat", {"model": "m", "messages": messages, "think": True}, 400, '"m" does not support thinking'),
        (
            "chat",
            {"model": "m", "messages": messages, "options": {"stop": "x"}},
            500,
            'option "stop" must be of type array',
        ),
        ("chat", {"model": "m", "messages": messages}, 500, "llama-server binary not found"),
        ("generate", {"model": "m", "prompt": "x", "raw": True, "system": "y"}, 400, "raw mode does not support"),
        ("generate", {"model": "m", "prompt": "x", "suffix": "y"}, 400, "does not support insert"),
        ("generate", {"model": "m", "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ("show", {}, 400, "model is required"),
        ("show", {"model": "モデル"}, 400, "invalid model name"),
        ("nothing", {}, 404, ""),
    ):
        answer = http.post(f"/api/{path}", json=body)
        said = answer.text if path == "nothing" else answer.json()["error"]
        assert (answer.status_code, words in said) == (status, True), (path, body, said)
    unloaded = http.post("/api/generate", json={"model": "m", "keep_alive": 0}).json()
    assert (unloaded["done"], unloaded["done_reason"], unloaded["response"]) == (True, "unload", "")
