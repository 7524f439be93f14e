"""A merge is planned from headers before the shards are here, and is the same as when they are."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_folders import HURRIED, download_to_cache, file_of, nobody, tree
from huggingface_hub import constants
from safetensors.numpy import load_file, save
from snakemake_runs import REPOSITORY
from stand_in.hub import TOKEN, Fault, HubStandIn, Model
from stand_in.hub_repository import repository_of

from ollamake import weight_identity
from ollamake.adapter import read_adapter
from ollamake.atomic_write import write_json
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.hub_download import fetch_file
from ollamake.hub_headers import fetch_headers
from ollamake.hub_pin import pin_sources
from ollamake.merge_plan import plan_merge
from ollamake.record_seal import read_record
from ollamake.safetensors_header import read_header
from ollamake.source_files import source_files

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def framed(header: str, data: int = 0) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + bytes(data)


def two_shards(**changes: Any) -> Model:
    files = {shard: save({f"w{shard[:7]}é": np.ones((30, 40), np.float32)}) for shard in SHARDS}
    return Model({"config.json": b"{}", **files}, **changes)


@pytest.fixture
def fetch(hub: HubStandIn, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that writes headers.json of org/model to ``tmp_path / "folder"`` and returns what is in it."""

    def fetching(weights: list[str] = SHARDS, endpoint: str | None = None) -> dict[str, Any]:
        folder = tmp_path / "folder"
        commit = hub.models["org/model"].commit
        options = {"endpoint": endpoint or hub.address, "patience": HURRIED}
        write_json(folder / "headers.json", fetch_headers("org/model", commit, weights, folder, **options))
        return read_record(folder / "headers.json")

    return fetching


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(OllamakeError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message
    assert "X-Signature" not in message
    return message


def digest_of(path: Path) -> str:
    weight_identity.header_digest.cache_clear()
    return weight_identity.header_digest(path)


# Planned before, planned after.


def test_plan_without_shards_is_the_plan_with_them(
    hub: HubStandIn, make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base()
    hub.models["org/model"] = model = repository_of(base)
    pinned = pin_sources({"base": "org/model", "adapters": []}, None, endpoint=hub.address, patience=HURRIED)["base"]
    folder = tmp_path / pinned["folder"]

    def get(name: str) -> None:
        fetch_file(file_of(model, name), pinned["commit"], folder / name, endpoint=hub.address, patience=HURRIED)

    for name in pinned["files"]:
        get(name)
    with pytest.raises(OllamakeError, match="are not there"):
        source_files("base", str(folder), "base")
    hub.requests.clear()
    headers = fetch_headers("org/model", pinned["commit"], pinned["weights"], folder, endpoint=hub.address)
    write_json(folder / "headers.json", headers)
    # 8 bytes and a header each; not one of a weight.
    assert hub.sent > 0
    asked = sum(request.sent for request in hub.asked("cdn"))
    assert asked == sum(read_header(base / name).data_start for name in pinned["weights"])
    assert not list(folder.glob("*.safetensors"))

    def state() -> list[Any]:
        checkpoint = read_checkpoint(str(folder), "base")
        plan = plan_merge(checkpoint, [read_adapter(make_adapter(base), 1.0)], "auto")
        digests = [digest_of(folder / name) for name in pinned["weights"]]
        return [checkpoint, source_files("base", str(folder), "base"), digests, json.dumps(plan, sort_keys=True)]

    before = state()
    assert len(before[0].shards) > 1
    assert before[2] == [digest_of(base / name) for name in pinned["weights"]]
    for name in pinned["weights"]:
        get(name)
    assert state() == before
    (folder / "headers.json").unlink()
    assert state() == before
    assert [entry.name for entry in before[0].shards[0].tensors] == [
        entry.name for entry in read_header(base / pinned["weights"][0]).tensors
    ]


def test_single_file(hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hub.models["org/model"] = Model({"model.safetensors": save({"w": np.zeros((3, 5), np.int8)})})
    found = fetch(["model.safetensors"])
    content = hub.models["org/model"].files["model.safetensors"]
    assert isinstance(content, bytes)
    assert found["model.safetensors"]["size"] == len(content)
    folder = tmp_path / "folder"
    (folder / "config.json").write_text("{}")
    weights, files = source_files("base", str(folder), "base")
    assert (weights, files) == ([f"{folder}/model.safetensors"], [f"{folder}/config.json"])
    assert read_header(folder / "model.safetensors").tensors[0].shape == (3, 5)
    assert read_header(folder / "model.safetensors").data_start == len(content) - 15


def test_file_that_is_there_is_read(hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hub.models["org/model"] = two_shards()
    fetch()
    path = tmp_path / "folder" / SHARDS[0]
    awaited = digest_of(path)
    path.write_bytes(save({"other": np.zeros(3, np.int8)}))
    assert [tensor.name for tensor in read_header(path).tensors] == ["other"]
    assert digest_of(path) != awaited
    path.write_bytes(b"cut")
    assert "is truncated or damaged" in refusal(read_header, path)
    path.unlink()
    assert digest_of(path) == awaited


def test_shard_that_neither_names(hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hub.models["org/model"] = two_shards()
    fetch(SHARDS[:1])
    folder = tmp_path / "folder"
    assert read_header(folder / SHARDS[0]).tensors
    assert "cannot be read: No such file" in refusal(read_header, folder / SHARDS[1])
    with pytest.raises(FileNotFoundError):
        digest_of(folder / SHARDS[1])
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))})
    )
    assert f"of which 1 are not there: {SHARDS[1]}" in refusal(source_files, "base", str(folder), "base")


def test_renewed_headers_are_read_again(hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hub.models["org/model"] = two_shards()
    fetch()
    path = tmp_path / "folder" / SHARDS[0]
    before = read_header(path)
    hub.models["org/model"].push("f" * 40, {SHARDS[0]: save({"other": np.zeros(3, np.int8)})})
    fetch()
    assert read_header(path) != before


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda found: "{", "headers.json is damaged"),
        (lambda found: "[]", "headers.json is damaged"),
        (lambda found: json.dumps({SHARDS[0]: {"size": 5}}), "headers.json is damaged"),
        (lambda found: json.dumps({SHARDS[0]: 5}), "headers.json is damaged"),
        (lambda found: json.dumps({SHARDS[0]: {**found[SHARDS[0]], "size": "5"}}), "headers.json is damaged"),
        (
            lambda found: json.dumps({SHARDS[0]: {**found[SHARDS[0]], "size": 5}}),
            f"{SHARDS[0]} is truncated or damaged",
        ),
        (lambda found: json.dumps({SHARDS[0]: {**found[SHARDS[0]], "header": "{"}}), "its header is not JSON"),
    ],
)
def test_damaged_headers(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path, damage: Callable[[Any], str], part: str
) -> None:
    hub.models["org/model"] = two_shards()
    path = tmp_path / "folder/headers.json"
    found = fetch()
    path.write_text(damage(found))
    message = refusal(read_header, path.with_name(SHARDS[0]))
    assert part in message
    assert str(path.parent) in message


# Where they are from.


def test_shard_in_the_cache_is_read_there(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["org/model"] = two_shards()
    expected = fetch()
    cache = download_to_cache(hub, allow_patterns=[SHARDS[0]])
    before = tree(cache)
    assert fetch() == expected
    assert {request.path for request in hub.asked("cdn")} == {f"/org/model/{SHARDS[1]}"}
    message = refusal(fetch, endpoint=nobody())
    assert "org/model at commit 0123456789ab: offline: 127.0.0.1:" in message
    assert "does not have the headers of its weights either" in message
    assert tree(cache) == before
    download_to_cache(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == expected
    assert not hub.requests


def test_shard_in_the_folder_is_read_there(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    hub.models["org/model"] = two_shards()
    expected = fetch()
    for shard in SHARDS:
        (tmp_path / "folder" / shard).write_bytes(hub.models["org/model"].files[shard])  # type: ignore[arg-type]
    assert fetch(endpoint=nobody()) == expected
    assert len(load_file(tmp_path / "folder" / SHARDS[0])) == 1


def test_damaged_shard_in_the_cache_is_named_and_left(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    hub.models["org/model"] = model = two_shards()
    expected = fetch()
    cache = download_to_cache(hub)
    blob = cache / f"models--org--model/snapshots/{model.commit}/{SHARDS[1]}"
    blob.resolve().write_bytes(blob.read_bytes()[:-1])
    before = tree(cache)
    assert fetch() == expected
    assert f"{blob} is truncated or damaged" in caplog.text
    assert tree(cache) == before


# What is wrong on the hub.


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is no safetensors file"),
        (framed("not json"), "org/model/model.safetensors is truncated or damaged: its header is not JSON"),
        (framed('{"w": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}', 1), "its header describes"),
        (framed('{"w": {"dtype": "I9", "shape": [2], "data_offsets": [0, 2]}}', 2), "unknown dtype"),
    ],
)
def test_damaged_header_on_the_hub(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], tmp_path: Path, content: bytes, part: str
) -> None:
    hub.models["org/model"] = Model({"model.safetensors": content})
    assert part in refusal(fetch, ["model.safetensors"])
    assert not (tmp_path / "folder").exists()


def test_other_faults(hub: HubStandIn, fetch: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = model = two_shards()
    assert "only .safetensors" in refusal(fetch, ["pytorch_model.bin"])
    hub.faults = [Fault("^cdn", "status", 503, times=2), Fault("^cdn", "cut", after=3, times=1)]
    assert len(fetch()) == 2
    hub.faults = [Fault("^cdn", "status", 503)]
    assert "fails (status 503)" in refusal(fetch)
    hub.faults = []
    model.gated = True
    assert "org/model is gated" in refusal(fetch)
    model.gated = False
    with pytest.raises(OllamakeError, match=r"no longer has the commit eeeeeeeeeeee.*--forcerun pin_sources"):
        fetch_headers("org/model", "e" * 40, SHARDS, Path("/nowhere"), endpoint=hub.address, patience=HURRIED)


def test_progress_is_shown_for_many_shards(
    hub: HubStandIn, fetch: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"model-{number:05}-of-00011.safetensors" for number in range(1, 12)]
    hub.models["org/model"] = Model({name: save({"w": np.zeros(2, np.int8)}) for name in names})
    fetch(names[:10])
    assert capsys.readouterr().err == ""
    assert list(fetch(names)) == names
    assert "headers of org/model" in capsys.readouterr().err


# The script.


def test_script(hub: HubStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub.models["org/model"] = model = two_shards(private=True)
    output = tmp_path / "resources/hub/org/model/0123456789ab/headers.json"
    command = [sys.executable, REPOSITORY / "scripts/fetch_headers.py", "--repo", "org/model", "--commit", model.commit]
    done = subprocess.run(
        [*command, "--weights", json.dumps(SHARDS), "--output", output],
        env={**os.environ, **hub.environment(tmp_path / "home"), "HF_TOKEN": TOKEN},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    for shard in SHARDS:
        content = model.files[shard]
        assert isinstance(content, bytes)
        length = int.from_bytes(content[:8], "little")
        entry = json.loads(output.read_bytes())[shard]
        assert entry == {"size": len(content), "header": content[8 : 8 + length].decode()}
