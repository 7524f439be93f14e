"""Shapes from the hub, against a stand-in for it that huggingface_hub's own client is content with."""

from __future__ import annotations

import json
import logging
import socketserver
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_folders import run_on_hub
from huggingface_hub import HfApi, constants
from safetensors.numpy import save
from snakemake_runs import REPOSITORY
from stand_in.hub import TOKEN, Fault, HubStandIn, Model, Weights, hub_stand_in

from ollamake import hub_requests, hub_shape
from ollamake.errors import OllamakeError
from ollamake.hub_files import parse_reference
from ollamake.hub_requests import Patience
from ollamake.hub_shape import fetch_shape
from ollamake.safetensors_header import header_bytes, tensor_bytes
from ollamake.shape import Shape, read_shape, write_shape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HURRIED = Patience(timeout=5.0, tries=3, first_pause=0.01, longest_pause=2.0)
CONFIG = {"model_type": "llama", "hidden_size": 4}
INDEX = "model.safetensors.index.json"
SHIPPED = REPOSITORY / "config/shapes"


@pytest.fixture
def fetch(hub: HubStandIn, tmp_path: Path) -> Callable[..., Shape]:
    def fetching(reference: str = "org/model", patience: Patience = HURRIED, endpoint: str | None = None) -> Shape:
        folders = {"shipped": tmp_path / "shipped", "cached": tmp_path / "cached"}
        return fetch_shape(reference, **folders, endpoint=endpoint or hub.address, patience=patience)

    return fetching


def refusal(fetch: Callable[..., Shape], *arguments: object, **options: object) -> str:
    with pytest.raises(OllamakeError) as caught:
        fetch(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message
    assert "X-Signature" not in message
    return message


def sharded(count: int = 2, **changes: object) -> Model:
    """A model in shards that safetensors wrote."""
    files: dict[str, bytes | Weights] = {"config.json": json.dumps(CONFIG).encode(), "README.md": b"hello"}
    weight_map = {}
    for number in range(1, count + 1):
        shard = f"model-{number:05}-of-{count:05}.safetensors"
        tensors = {f"layers.{number}.up": np.zeros((4, 6), np.float16), f"layers.{number}.norm": np.ones(4, np.float32)}
        files[shard] = save(tensors, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return Model(files, **changes)


def single(content: bytes | Weights | None = None) -> Model:
    content = save({"w": np.zeros((3, 5), np.int8)}) if content is None else content
    return Model({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": content})


def header_size(content: bytes | Weights) -> int:
    head = content.head if isinstance(content, Weights) else content
    return 8 + int.from_bytes(head[:8], "little")


# What is fetched.


def test_agrees_with_the_reader_of_huggingface_hub(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded(3)
    theirs = HfApi(endpoint=hub.address).get_safetensors_metadata("org/model")
    tensors = {
        name: (tensor.dtype, tuple(tensor.shape))
        for file in theirs.files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    shape = fetch()
    assert {name: (dtype, size) for name, dtype, size in shape.tensors} == tensors
    assert len(tensors) == 6
    assert list(shape.tensors) == sorted(shape.tensors)
    assert (shape.name, shape.config, shape.metadata_bytes) == ("org/model", CONFIG, None)
    assert shape.source == f"https://huggingface.co/org/model/tree/{COMMIT}"


def test_stand_in_is_a_hub_to_the_real_client(hub: HubStandIn, tmp_path: Path) -> None:
    hub.models["org/model"] = model = sharded()
    api = HfApi(endpoint=hub.address)
    info = api.model_info("org/model")
    assert info.sha == COMMIT
    assert {file.rfilename for file in info.siblings or []} == set(model.files)
    path = api.hf_hub_download("org/model", "model-00001-of-00002.safetensors", cache_dir=tmp_path / "other")
    assert Path(path).read_bytes() == model.files["model-00001-of-00002.safetensors"]
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api.model_info("org/model", revision="v9")
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError):
        api.hf_hub_download("org/model", "none.json", cache_dir=tmp_path / "other")
    hub.models["org/model"] = sharded(gated=True)
    with pytest.raises(huggingface_hub.errors.GatedRepoError):
        api.hf_hub_download("org/model", "config.json", cache_dir=tmp_path / "third")
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        HfApi(endpoint=hub.address, token=TOKEN).model_info("org/none")


def test_8b_model_costs_its_headers_and_nothing_more(
    hub: HubStandIn, fetch: Callable[..., Shape], tmp_path: Path
) -> None:
    known = read_shape(SHIPPED / "Qwen/Qwen3-8B.yaml")
    count = 5
    files: dict[str, bytes | Weights] = {"config.json": json.dumps(known.config).encode()}
    weight_map = {}
    for number in range(count):
        tensors = list(known.tensors[number::count])
        shard = f"model-{number + 1:05}-of-{count:05}.safetensors"
        head = header_bytes(tensors)
        files[shard] = Weights(head, len(head) + sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors))
        weight_map |= dict.fromkeys((name for name, *_ in tensors), shard)
    files[INDEX] = json.dumps({"weight_map": weight_map}).encode()
    hub.models["Qwen/Qwen3-8B"] = Model(files)
    shape = fetch("Qwen/Qwen3-8B")
    assert (shape.tensors, shape.config) == (known.tensors, known.config)
    shards = [content for content in files.values() if isinstance(content, Weights)]
    assert sum(shard.size for shard in shards) > 16e9
    needed = sum(map(header_size, shards)) + len(files["config.json"]) + len(files[INDEX])  # type: ignore[arg-type]
    assert needed < hub.sent < needed + 2000
    assert all(request.range for request in hub.asked("cdn"))
    assert len(hub.asked("cdn")) == 2 * count
    write_shape(tmp_path / "shape.json", shape)
    assert read_shape(tmp_path / "shape.json") == shape


def test_single_file_and_revision(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    model = single()
    model.revisions = ("main", "refs/pr/7", "v1.0")
    hub.models["org/model"] = model
    for reference in ("org/model", "org/model@v1.0", "org/model@refs/pr/7", f"org/model@{COMMIT}"):
        assert fetch(reference).tensors == (("w", "I8", (3, 5)),)
    files = [request.path for request in hub.requests if "/resolve/" in request.path]
    # Whatever moves meanwhile, all files are of one commit.
    assert {path.split("/resolve/")[1].split("/")[0] for path in files} == {COMMIT}


def test_progress_is_shown_for_many_shards_only(
    hub: HubStandIn, fetch: Callable[..., Shape], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.models["org/model"], hub.models["org/small"] = sharded(24), sharded(10)
    assert len(fetch().tensors) == 48
    assert "headers of org/model" in capsys.readouterr().err
    fetch("org/small")
    assert capsys.readouterr().err == ""


def test_shards_are_asked_for_at_once(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded(32)
    # The first request for each, for 8 bytes that take 0.16 s.
    hub.faults = [Fault("^cdn", "trickle", times=8)]
    assert len(fetch().tensors) == 64
    # One more than there are threads may be seen: an answer has come before its server is done with it.
    assert 4 <= hub.most_at_once <= 16


# References.


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("org/name", ("org/name", "main")),
        ("Qwen/Qwen2.5-7B-Instruct", ("Qwen/Qwen2.5-7B-Instruct", "main")),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("o_g/1-n_a.me@" + COMMIT, ("o_g/1-n_a.me", COMMIT)),
    ],
)
def test_reference(reference: str, expected: tuple[str, str]) -> None:
    assert parse_reference(reference) == expected


@pytest.mark.parametrize(
    "reference",
    ["", "name", "a/b/c", "../name", "org/..", "org/../x", "org/name@", "org/name@../../x", "org/name@a@b", "org/na me",
     "/org/name", "org/", "https://huggingface.co/org/name", "org/name@/etc", "org/name@a//b", "org/name@-x", "org/.name",
     "org/name.git", "org/na--me", "org/näme", "org/name\n", "org/name@v1?x=1", "org/name@v%2e", "org\\name", "~/name",
     "org/name@a/./b"],
)  # fmt: skip
def test_other_references_are_refused(reference: str) -> None:
    with pytest.raises(OllamakeError, match="Expected org/name"):
        parse_reference(reference)


# Token.


def test_token_goes_to_the_hub_and_not_to_its_cdn(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.models["org/model"] = sharded(private=True, gated=True)
    shape = fetch()
    assert {request.authorization for request in hub.asked("hub")} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in hub.asked("cdn")} == {None}
    assert TOKEN not in repr(shape)


@pytest.mark.parametrize(
    ("token", "parts"),
    [
        (None, ["is gated", "Accept them at https://huggingface.co/org/model", "set HF_TOKEN"]),
        ("hf_OfAnotherAccount", ["is gated", "Accept them at https://huggingface.co/org/model", "has no access"]),
    ],
)
def test_gated(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch, token: str | None, parts: list[str]
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.models["org/model"] = sharded(gated=True)
    message = refusal(fetch)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(("token", "part"), [(None, "set HF_TOKEN"), ("hf_OfAnotherAccount", "may not read it")])
@pytest.mark.parametrize("there", [True, False])
def test_private_or_missing(
    hub: HubStandIn,
    fetch: Callable[..., Shape],
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    token: str | None,
    part: str,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if there:
        hub.models["org/model"] = sharded(private=True)
    message = refusal(fetch)
    assert "There is no folder 'org/model' here, and no model of that name at" in message
    assert part in message
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("token", "part"),
    [("hf_Unknown", "does not know the token"), ("hf_Odd\x0bToken", "no token has"), ("hf_Ödd", "no token has")],
)
def test_invalid_token(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch, token: str, part: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.models["org/model"] = sharded()
    with pytest.raises(OllamakeError, match=part) as caught:
        fetch()
    # Nor is it in a traceback, where the token's odd character is escaped.
    assert token[:5] not in "".join(traceback.format_exception(caught.value))


def test_server_that_repeats_the_token_does_not_get_it_printed(
    fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked = self.request.recv(65536).decode()
            self.request.sendall(f"{asked.partition('uthorization: ')[2]}\r\n".encode())

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        message = refusal(fetch, endpoint=f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert "Bearer (token)" in message


# What a repository may lack.


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["model.safetensors"], "has no config.json"),
        (["config.json"], "has no weights"),
        (["config.json", "pytorch_model.bin"], "as .bin only"),
        (["config.json", "model-Q4_K_M.gguf"], "has GGUF files"),
        (["README.md", "model-Q4_K_M.gguf"], "has GGUF files"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["config.json", "consolidated.safetensors"], "consolidated.safetensors. Expected"),
    ],
)
def test_repository_without_shape(hub: HubStandIn, fetch: Callable[..., Shape], files: list[str], part: str) -> None:
    hub.models["org/model"] = Model(dict.fromkeys(files, b"{}"))
    message = refusal(fetch)
    assert part in message
    assert f"https://huggingface.co/org/model/tree/{COMMIT}" in message
    assert len(hub.requests) == 1


def test_missing_revision(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded()
    assert "org/model has no revision 'v9'" in refusal(fetch, "org/model@v9")


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "..", "a/model.safetensors", "/etc/passwd", "a\\b.safetensors", "x.bin", "", 5, [1], None],
)
def test_index_that_climbs_out(hub: HubStandIn, fetch: Callable[..., Shape], name: object) -> None:
    hub.models["org/model"] = model = sharded()
    model.files[INDEX] = json.dumps({"weight_map": {"w": name}}).encode()
    assert "names files" in refusal(fetch)
    assert not hub.asked("cdn")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("config.json", b"<html>", "config.json is not JSON"),
        ("config.json", b"[1]", "config.json is not a JSON object"),
        ("config.json", b"\xff\xfe\xff", "config.json is not JSON"),
        ("config.json", b"[" * 200_000, "config.json is not JSON"),
        (INDEX, b"{}", "no `weight_map`"),
        (INDEX, b'{"weight_map": []}', "no `weight_map`"),
        (INDEX, b'{"weight_map": {"w": "model-9.safetensors"}}', "1 files that are not there (model-9.safetensors)"),
        (INDEX, b'{"weight_map": {"w": "model-00001-of-00002.safetensors"}}', "disagree on 3 tensors"),
    ],
)
def test_damaged_file(hub: HubStandIn, fetch: Callable[..., Shape], name: str, content: bytes, part: str) -> None:
    hub.models["org/model"] = model = sharded()
    model.files[name] = content
    message = refusal(fetch)
    assert part in message
    assert "org/model at commit 0123456789ab" in message


def framed(text: str, data: int = 0) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(data)


ENTRY = '{"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}'


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (Weights((100_000_001).to_bytes(8, "little"), 300_000_000), "a header may have 100 MB"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no safetensors file"),
        (b"abc", "is no safetensors file"),
        (b"", "ends before its header"),
        (framed("{}")[:9], "is no safetensors file"),
        (framed("not json"), "the header of model.safetensors is not one"),
        (framed("[1, 2]"), "its header is not a table of tensors"),
        (framed("[" * 100_000), "is not one"),
        (framed('{"w": 5}'), "is not one"),
        (framed(f'{{"w": {ENTRY}}}'.replace("I8", "I9"), 2), "unknown dtype 'I9'"),
        (framed(f'{{"w": {ENTRY}}}'.replace("[2]", "[-2]"), 2), "has the shape"),
        (framed(f'{{"w": {ENTRY}}}'.replace("[2]", "[3]"), 2), "has 2 bytes, I8 [3] needs 3"),
        (framed(f'{{"w": {ENTRY}}}', 1), "its header describes"),
        (framed(f'{{"w": {ENTRY}}}', 3), "its header describes"),
        (framed("{}"), "weights have 0 tensors"),
    ],
)
def test_damaged_header(hub: HubStandIn, fetch: Callable[..., Shape], content: bytes | Weights, part: str) -> None:
    hub.models["org/model"] = single(content)
    assert part in refusal(fetch)
    assert hub.sent < 210_000


def test_tensor_in_two_shards(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = model = sharded()
    model.files["model-00002-of-00002.safetensors"] = model.files["model-00001-of-00002.safetensors"]
    assert "stands in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors" in refusal(fetch)


# What a server may do wrong.


def test_server_that_ignores_range_is_left_at_once(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    size = 1_000_000_000
    hub.models["org/model"] = single(Weights(framed("{}"), size))
    hub.faults = [Fault("^cdn", "whole")]
    message = refusal(fetch)
    assert "ignores which part of model.safetensors is asked for" in message
    assert f"({size} bytes)" in message
    # Nothing is read; some is under way in the sockets of both sides before the connection is closed.
    time.sleep(0.2)
    assert hub.sent < 8_000_000
    assert len(hub.asked("cdn")) == 1


def test_server_that_sends_more_than_it_announced_is_left(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded()
    hub.faults = [Fault("^cdn", "endless")]
    assert "sends more than the 8 bytes" in refusal(fetch)
    hub.faults = [Fault("/api/models", "endless")]
    assert "sends more than the 20000000 bytes" in refusal(fetch)
    time.sleep(0.2)
    assert hub.sent < 40_000_000


def test_another_range_is_not_taken_for_the_one(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded()
    hub.faults = [Fault("^cdn", "shifted")]
    assert "another part" in refusal(fetch)


@pytest.mark.parametrize("where", ["/api/models", "/config.json$", "/resolve/.*safetensors$", "^cdn"])
@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (Fault("", "status", 503), "fails (status 503)"),
        (Fault("", "cut", after=2), "broke off"),
        (Fault("", "hang"), "no answer from 127.0.0.1"),
        (
            Fault("", "status", 429, {"Retry-After": "0"}),
            "too many requests from here (status 429) and asks to wait 0 s",
        ),
    ],
    ids=["503", "cut", "hang", "429"],
)
def test_passing_faults_are_survived_and_lasting_ones_told(
    hub: HubStandIn, fetch: Callable[..., Shape], where: str, fault: Fault, part: str
) -> None:
    hub.models["org/model"] = single()
    patience = replace(HURRIED, timeout=0.4) if fault.kind == "hang" else HURRIED
    settings = (fault.kind, fault.status, fault.headers, fault.body, fault.after)
    hub.faults = [Fault(where, *settings, times=2)]
    assert fetch(patience=patience).tensors == (("w", "I8", (3, 5)),)
    hub.faults = [Fault(where, *settings)]
    message = refusal(fetch, patience=patience)
    assert part in message
    assert message.startswith("org/model: ")


def test_short_answers_are_asked_for_again(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = single()
    hub.faults = [Fault("^cdn", "short", after=3, times=2)]
    assert fetch().tensors == (("w", "I8", (3, 5)),)
    hub.faults = [Fault("^cdn", "short", after=3)]
    assert "sent 3 of 8 bytes of model.safetensors" in refusal(fetch)


def test_trickling_answer_is_given_up(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["org/model"] = single()
    hub.faults = [Fault("/api/models", "trickle")]
    monkeypatch.setattr(hub_requests, "_TIMEOUTS_OF_AN_ANSWER", 0.1)
    assert "too slowly" in refusal(fetch, patience=replace(HURRIED, tries=1))


def test_pauses_are_those_that_the_server_asks_for(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = single()
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    for headers, wait in (
        ({"Retry-After": "300"}, "300"),
        ({"RateLimit": '"api";r=0;t=123'}, "123"),
        ({"Retry-After": later}, "600"),
    ):
        hub.faults = [Fault("/api/models", "status", 429, headers)]
        hub.requests.clear()
        begin = time.monotonic()
        message = refusal(fetch)
        assert f"asks to wait {wait} s" in message or f"asks to wait {int(wait) - 1} s" in message
        assert "With HF_TOKEN set the hub allows more" in message
        assert time.monotonic() - begin < 20
        assert len(hub.requests) == 1
    hub.faults = [Fault("/api/models", "status", 429, {"Retry-After": "1"}, times=1)]
    begin = time.monotonic()
    fetch()
    assert time.monotonic() - begin >= 1


def test_one_lasting_fault_ends_the_pauses_of_the_others(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = sharded(6)
    hub.faults = [
        Fault("^cdn.*00001-of", "status", 403),
        Fault("^cdn", "status", 429, {"Retry-After": "30"}),
    ]
    begin = time.monotonic()
    assert "refuses model-00001-of-00006.safetensors of org/model (status 403)" in refusal(
        fetch, patience=Patience(timeout=5)
    )
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "body", [b"<html>Log in</html>", b"[]", b'{"sha": "main", "siblings": []}', b'{"sha": null}', b"5"]
)
def test_something_else_than_a_hub(hub: HubStandIn, fetch: Callable[..., Shape], body: bytes) -> None:
    hub.faults = [Fault("/api/models", "status", 200, {"Content-Type": "text/html"}, body)]
    assert "does not answer as the Hugging Face hub does" in refusal(fetch)


def test_redirects_without_end_and_strange_endpoints(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = single()
    hub.faults = [Fault("^hub", "redirect", 302, {"Location": "/api/models/org/model"})]
    assert "Check HF_ENDPOINT" in refusal(fetch)
    assert "Check HF_ENDPOINT" in refusal(fetch, endpoint="huggingface.co")
    assert "Check HF_ENDPOINT" in refusal(fetch, endpoint="ftp://user:secret@host")
    assert "secret" not in refusal(fetch, endpoint="ftp://user:secret@host")


def test_compressed_answers_are_not_read_as_they_are(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.faults = [Fault("/api/models", "status", 200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")]
    assert "compresses" in refusal(fetch)


def test_all_answers_together_are_bounded(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["org/model"] = sharded(4)
    monkeypatch.setattr(hub_requests, "MOST_IN_TOTAL", 1500)
    assert "which no model's headers have" in refusal(fetch)


def test_certificate_that_nobody_signed(
    fetch: Callable[..., Shape], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ollamake")
    file = tmp_path / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=stand-in",
        "-days",
        "2",
        "-keyout",
    ]
    subprocess.run([*command, file, "-out", tmp_path / "certificate.pem"], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    with hub_stand_in(certificate=file) as other:
        message = refusal(fetch, endpoint=other.address)
    assert "the certificate of 127.0.0.1" in message
    assert "SSL_CERT_FILE" in message
    assert "trying again" not in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", "/nowhere.pem"),
        ("SSL_CERT_FILE", __file__),
        ("HTTPS_PROXY", "gopher://user:secret@127.0.0.1:9"),
        ("HTTPS_PROXY", "http://user:secret@127.0.0.1:port"),
    ],
)
def test_settings_of_connections(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refusal(fetch)
    assert name in message
    assert "secret" not in message


# Without the hub.


def nobody() -> str:
    with hub_stand_in() as gone:
        return gone.address


def write_known(tmp_path: Path) -> None:
    for folder, name in (("shipped", "Qwen/Known.yaml"), ("cached", "org/Fetched.json")):
        (tmp_path / folder / name).parent.mkdir(parents=True)
        (tmp_path / folder / name).write_text("{}")


def test_offline(hub: HubStandIn, fetch: Callable[..., Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_known(tmp_path)
    messages = [refusal(fetch, endpoint=nobody())]
    assert messages[0].startswith("org/model: there is no such folder here (looked from ")
    assert "and of the hub: offline: 127.0.0.1:" in messages[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    messages.append(refusal(fetch))
    assert "offline: HF_HUB_OFFLINE is set" in messages[1]
    for message in messages:
        assert "with ollamake: Qwen/Known; fetched before: org/Fetched." in message
        assert "Did you mean Qwen" not in message
    assert "Did you mean Qwen/Known?" in refusal(fetch, "qwen/known")
    assert not hub.requests


def test_downloaded_model_needs_no_hub(
    hub: HubStandIn, fetch: Callable[..., Shape], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.models["org/model"] = model = sharded()
    expected = fetch()
    names = ["config.json", INDEX, *(name for name in model.files if name.endswith(".safetensors"))]
    for name in names[:-1]:
        HfApi(endpoint=hub.address).hf_hub_download("org/model", name)
    hub.requests.clear()
    assert fetch() == expected
    # The list of files, and the one shard that is not in the cache.
    assert len({request.path for request in hub.asked("hub")}) == 2
    assert {request.path for request in hub.asked("cdn")} == {f"/org/model/{names[-1]}"}
    gone = nobody()
    assert "local cache of downloads does not have all of the model" in refusal(fetch, endpoint=gone)
    HfApi(endpoint=hub.address).hf_hub_download("org/model", names[-1])
    caplog.set_level(logging.INFO, "ollamake")
    assert fetch(endpoint=gone) == expected
    assert "read from the cache of downloads" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == expected
    assert "org/model@v2: " in refusal(fetch, "org/model@v2")


def test_download_of_an_older_commit_is_not_taken(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = single()
    for name in ("config.json", "model.safetensors"):
        HfApi(endpoint=hub.address).hf_hub_download("org/model", name)
    hub.models["org/model"] = single(save({"w": np.zeros((7, 7), np.int8)}))
    hub.models["org/model"].commit = "f" * 40
    shape = fetch()
    assert shape.tensors == (("w", "I8", (7, 7)),)
    assert shape.source.endswith("f" * 40)
    assert fetch(f"org/model@{COMMIT}", endpoint=nobody()).tensors == (("w", "I8", (3, 5)),)


def test_damaged_download_is_named(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    hub.models["org/model"] = single()
    path = Path(HfApi(endpoint=hub.address).hf_hub_download("org/model", "config.json"))
    path.resolve().write_text("{")
    assert f"Delete {path} to have it fetched again." in refusal(fetch)


# The script.


def test_script(hub: HubStandIn, tmp_path: Path) -> None:
    hub.models["org/model"] = sharded(private=True)
    output = tmp_path / "resources/shapes/org/model.json"
    done = run_on_hub(
        "fetch_shape.py", hub, tmp_path, "--model", "org/model@main", "--output", str(output), HF_TOKEN=TOKEN
    )
    assert done.returncode == 0, done.stderr
    assert len(read_shape(output).tensors) == 4
    assert TOKEN not in output.read_text() + done.stderr + done.stdout
    assert "org/model: " in done.stderr
    assert "X-Signature" not in done.stderr
    # Nothing but the model is asked for.
    assert {request.path.split("/org/model")[0] for request in hub.asked("hub")} <= {
        "/api/models",
        "/api/resolve-cache/models",
        "",
    }


def test_script_offline(hub: HubStandIn, tmp_path: Path) -> None:
    output = tmp_path / "org/model.json"
    options = ("--shipped", str(SHIPPED), "--cached", str(tmp_path))
    done = run_on_hub(
        "fetch_shape.py", hub, tmp_path, "--model", "org/model", "--output", str(output), *options, HF_HUB_OFFLINE="1"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: org/model: there is no such folder here")
    assert "offline: HF_HUB_OFFLINE is set" in done.stderr
    assert "Qwen/Qwen3-8B" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not output.exists()
    assert not hub.requests


def test_threads_end_with_the_fetch(hub: HubStandIn, fetch: Callable[..., Shape]) -> None:
    """A defect in reading one header is not swallowed with the others."""
    hub.models["org/model"] = sharded(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_shape, "listed_tensors", lambda size, content: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fetch()
    assert len(hub.asked("cdn")) < 2 * 60
