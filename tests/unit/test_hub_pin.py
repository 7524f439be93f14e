"""What is pinned of the hub is what the hub has, and stays until it is asked for anew."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_folders import HURRIED, download_to_cache, nobody, run_on_hub, tree
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from safetensors.numpy import save
from stand_in.hub import TOKEN, Fault, HubStandIn, Model
from stand_in.hub_repository import repository_of

from ollamake import hub_pin
from ollamake.errors import OllamakeError
from ollamake.hub_pin import pin_sources, read_former
from ollamake.source_files import source_files

INDEX = "model.safetensors.index.json"
COMMIT, LATER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def base_model(**changes: Any) -> Model:
    shards = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    # Sorted otherwise than the shards are.
    names = ["z", "a", "m"]
    files: dict[str, Any] = {
        shard: save({name: np.full((5, 7), number, np.float16)})
        for number, (shard, name) in enumerate(zip(shards, names, strict=True))
    }
    files |= {
        INDEX: json.dumps({"weight_map": dict(zip(names, shards, strict=True))}).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "config.json": b'{"model_type": "llama"}',
        "generation_config.json": b"{}",
        "README.md": b"hello",
        "pytorch_model.bin": b"the same once more",
        "original/consolidated.00.pth": b"and again",
        "original/config.json": b"{}",
        ".gitattributes": b"*.safetensors filter=lfs",
    }
    return Model(files, **changes)


def adapter_model(weights: str = "adapter_model.safetensors", **changes: Any) -> Model:
    files = {weights: save({"w": np.zeros((2, 3), np.float32)}), "adapter_config.json": b'{"peft_type": "LORA"}'}
    others = {"tokenizer.json": b"{}", "optimizer.pt": b"state", "checkpoint-5/adapter_config.json": b"{}"}
    return Model(files | others, **changes)


@pytest.fixture
def pin(hub: HubStandIn) -> Callable[..., dict[str, Any]]:
    """Return a function that pins a base and adapters."""

    def pinning(
        base: str | None = "org/model",
        *adapters: str | None,
        former: dict[str, Any] | None = None,
        renew: bool = False,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        spec = {"format": 1, "base": base, "adapters": list(adapters)}
        return pin_sources(spec, former, renew=renew, endpoint=endpoint or hub.address, patience=HURRIED)

    return pinning


def refusal(pin: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> str:
    with pytest.raises(OllamakeError) as caught:
        pin(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message
    assert "X-Signature" not in message
    return message


def served(model: Model, folder: Path) -> Path:
    """Write a repository's files to a folder."""
    for name, content in model.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)  # type: ignore[arg-type]
    return folder


# The stand-in, by others' measures.


def test_stand_in_has_gits_digests_and_the_real_client_reads_them(hub: HubStandIn, tmp_path: Path) -> None:
    folder = served(base_model(), tmp_path / "served")
    hub.models["org/model"] = model = repository_of(folder)
    info = HfApi(endpoint=hub.address).model_info("org/model", files_metadata=True)
    assert info.sha == model.commit
    assert {file.rfilename for file in info.siblings or []} == set(base_model().files)
    for file in info.siblings or []:
        path = folder / file.rfilename
        assert file.size == path.stat().st_size
        if file.lfs:
            said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
            assert (file.lfs.sha256, file.lfs.size) == (said.split()[0], file.size)
        else:
            said = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout
            assert file.blob_id == said.strip()
    assert sum(bool(file.lfs) for file in info.siblings or []) == 4
    # A changed folder is another commit.
    (folder / "README.md").write_text("other")
    assert repository_of(folder).commit != model.commit


def test_snapshot_of_the_real_client_is_what_is_served(hub: HubStandIn, tmp_path: Path) -> None:
    folder = served(base_model(), tmp_path / "served")
    hub.models["org/model"] = repository_of(folder)
    found = Path(snapshot_download("org/model", endpoint=hub.address))
    assert {
        str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()
    } == base_model().files
    blobs = {path.name for path in (found.parent.parent / "blobs").iterdir()}
    content = HfApi(endpoint=hub.address).model_info("org/model", files_metadata=True).siblings or []
    assert blobs == {file.lfs.sha256 if file.lfs else file.blob_id for file in content}


# What is pinned.


def test_base(hub: HubStandIn, pin: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    hub.models["org/model"] = model = base_model(revisions=("main", "v1.0"))
    pinned = pin("org/model@v1.0")
    source = pinned["base"]
    assert (pinned["format"], pinned["adapters"]) == (1, [])
    assert (source["reference"], source["repo"], source["revision"]) == ("org/model@v1.0", "org/model", "v1.0")
    assert source["commit"] == COMMIT
    # The same as if the folder were here.
    folder = str(served(model, tmp_path / "served"))
    weights, files = source_files("base", folder, "base")
    assert [f"{folder}/{name}" for name in source["weights"]] == weights
    assert [f"{folder}/{name}" for name in source["files"]] == files
    assert len(weights) == 3
    assert INDEX in source["files"]
    assert set(source["content"]) == {*source["weights"], *source["files"]}
    # As huggingface_hub has them.
    for file in HfApi(endpoint=hub.address).model_info("org/model", files_metadata=True).siblings or []:
        if file.rfilename in source["content"]:
            digest = {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
            assert source["content"].pop(file.rfilename) == {"size": file.size, **digest}
    assert source["content"] == {}


def test_requests(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    """One for commit, files and digests; one for index and configuration each, and where that is redirected to."""
    hub.models["org/model"], hub.models["me/adapter"] = base_model(), adapter_model()
    pin("org/model", "me/adapter", None, "me/adapter")
    assert [request.path for request in hub.requests] == [
        "/api/models/org/model/revision/main",
        f"/org/model/resolve/{COMMIT}/{INDEX}",
        f"/api/resolve-cache/models/org/model/{COMMIT}/{INDEX}",
        f"/org/model/resolve/{COMMIT}/config.json",
        f"/api/resolve-cache/models/org/model/{COMMIT}/config.json",
        "/api/models/me/adapter/revision/main",
        f"/me/adapter/resolve/{COMMIT}/adapter_config.json",
        f"/api/resolve-cache/models/me/adapter/{COMMIT}/adapter_config.json",
    ]


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapter(hub: HubStandIn, pin: Callable[..., dict[str, Any]], tmp_path: Path, weights: str) -> None:
    hub.models["me/adapter"] = model = adapter_model(weights)
    pinned = pin(None, None, "me/adapter")
    assert pinned["base"] is None
    assert pinned["adapters"][0] is None
    source = pinned["adapters"][1]
    folder = str(served(model, tmp_path / "served"))
    found = source_files("adapter", folder, "adapter")
    assert (
        [f"{folder}/{name}" for name in source["weights"]],
        [f"{folder}/{name}" for name in source["files"]],
    ) == found
    assert source["weights"] == [weights]
    assert source["files"] == ["adapter_config.json", "tokenizer.json"]


def test_single_file_needs_no_index(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = Model(
        {"config.json": b'{"a": 1}', "model.safetensors": b"weights", "model.gguf": b"other"}
    )
    base = pin()["base"]
    assert base["weights"] == ["model.safetensors"]
    assert base["config"] == {"a": 1}
    assert not [request for request in hub.requests if INDEX in request.path]


def test_others_say_what_a_name_means(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    """Of a model that names the same: nothing is asked, wherever the branch is now. Renewed, it is where the branch is."""
    hub.models["org/model"] = model = base_model()
    first = pin()
    model.push(LATER, {"config.json": b"{}"})
    hub.requests.clear()
    spec = {"format": 1, "base": "org/model", "adapters": []}
    assert pin_sources(spec, None, [first]) == first
    assert hub.requests == []
    assert pin_sources(spec, None, [first], renew=True)["base"]["commit"] == LATER


@pytest.mark.parametrize("config", [b"[]", b"{", b"\xff"])
def test_configuration_that_is_none(hub: HubStandIn, pin: Callable[..., dict[str, Any]], config: bytes) -> None:
    hub.models["org/model"] = Model({"config.json": config, "model.safetensors": b"weights"})
    with pytest.raises(OllamakeError, match=r"org/model at commit \w+ cannot be used: config.json is not"):
        pin()


def test_folder_is_what_the_files_hold(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = model = base_model()
    first = pin()["base"]
    assert first["folder"].startswith("resources/hub/org/model/")
    assert len(first["folder"].rpartition("/")[2]) == 12
    model.push(LATER, {"README.md": b"better words"})
    second = pin()["base"]
    assert (second["commit"], second["folder"], second["content"]) == (LATER, first["folder"], first["content"])
    folders = {first["folder"]}
    for number, (name, content) in enumerate(
        [("config.json", b"{ }"), ("generation_config.json", None), ("model-00002-of-00003.safetensors", b"other")]
    ):
        model.push(f"{number}" * 40, {name: content})
        folders.add(pin()["base"]["folder"])
    assert len(folders) == 4


# What was pinned.


def test_pinned_reference_stays_without_a_request(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"], hub.models["me/adapter"] = model, adapter = base_model(), adapter_model()
    former = pin("org/model", "me/adapter")
    model.push(LATER, {"config.json": b"{ }"})
    adapter.push(LATER, {"adapter_config.json": b"{ }"})
    hub.requests.clear()
    assert pin("org/model", "me/adapter", former=former) == former
    assert pin("org/model", None, "me/adapter", former=former)["adapters"] == [None, *former["adapters"]]
    assert not hub.requests
    # Another reference is asked for, and only that one; as another kind it is another source.
    moved = pin("org/model@main", "me/adapter", former=former)
    assert moved["base"]["commit"] == LATER
    assert moved["adapters"] == former["adapters"]
    assert not any("me/adapter" in request.path for request in hub.requests)
    assert "is an adapter" in refusal(pin, "me/adapter", former=former)
    renewed = pin("org/model", "me/adapter", former=former, renew=True)
    assert renewed["base"]["commit"] == renewed["adapters"][0]["commit"] == LATER
    assert renewed["base"]["folder"] != former["base"]["folder"]


def cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut, "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "its format is 0, not 1"),
        (lambda text: text.replace('"commit"', '"comit"'), "has no commit"),
        (lambda text: text.replace("resources/hub", "/etc"), "are not those of"),
        (lambda text: text.replace('"org/model"', '"org/other"', 1), "is not"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0', 1), "is not a sha256"),
        (lambda text: text.replace('"size": ', '"size": 1', 1), "are not those of"),
    ],
)
def test_damaged_pin_counts_as_none(
    hub: HubStandIn,
    pin: Callable[..., dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[str], str],
    part: str,
) -> None:
    hub.models["org/model"] = base_model()
    path = tmp_path / "sources.json"
    assert read_former(path) is None
    pinned = pin()
    text = json.dumps(pinned)
    path.write_text(text)
    assert read_former(path) == pinned
    assert not caplog.text
    assert damage(text) != text
    path.write_text(damage(text))
    assert read_former(path) is None
    assert part in caplog.text
    assert f"{path} is damaged" in caplog.text


# What is refused.


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["model.safetensors"], "has no config.json"),
        (["config.json"], "has no weights"),
        (["config.json", "pytorch_model.bin"], "as .bin only"),
        (["config.json", "model-Q4_K_M.gguf"], "has GGUF files"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
    ],
)
def test_no_base(hub: HubStandIn, pin: Callable[..., dict[str, Any]], files: list[str], part: str) -> None:
    hub.models["org/model"] = Model(dict.fromkeys(files, b"{}"))
    message = refusal(pin)
    assert part in message
    assert f"https://huggingface.co/org/model/tree/{COMMIT}" in message
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["config.json", "model.safetensors"], "is a full model, not an adapter. Give it as `base`"),
        (["config.json", INDEX], "is a full model"),
        (["adapter_config.json", "adapter.safetensors"], "neither adapter_model.safetensors nor adapter_model.bin"),
        (["README.md", "run/adapter_config.json"], "in a folder below (run/adapter_config.json)"),
        (["lora-Q8_0.gguf"], "has GGUF files (lora-Q8_0.gguf), not an adapter"),
        (["adapter_model.safetensors"], "has no adapter_config.json"),
    ],
)
def test_no_adapter(hub: HubStandIn, pin: Callable[..., dict[str, Any]], files: list[str], part: str) -> None:
    hub.models["me/adapter"] = Model(dict.fromkeys(files, b"{}"))
    message = refusal(pin, None, "me/adapter")
    assert part in message
    assert f"https://huggingface.co/me/adapter/tree/{COMMIT}" in message


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({"weight_map": {"w": "../model.safetensors"}}, "outside"),
        ({"weight_map": {"w": "a/model.safetensors"}}, "outside"),
        ({"weight_map": {"w": "a\nb.safetensors"}}, "outside"),
        ({"weight_map": {"w": "a\\b.safetensors"}}, "outside"),
        ({"weight_map": {"w": ".."}}, "outside"),
        ({"weight_map": {"w": "optimizer.pt"}}, "no .safetensors"),
        ({"weight_map": {"w": "gone.safetensors"}}, "1 files that are not there (gone.safetensors)"),
        ({"weight_map": {}}, "no `weight_map`"),
        ({}, "no `weight_map`"),
        ([], "no `weight_map`"),
    ],
)
def test_index_that_names_other_files(
    hub: HubStandIn, pin: Callable[..., dict[str, Any]], index: Any, part: str
) -> None:
    hub.models["org/model"] = model = base_model()
    model.files[INDEX] = json.dumps(index).encode()
    message = refusal(pin)
    assert part in message
    assert f"org/model at commit {COMMIT[:12]} cannot be used" in message


def test_index_of_other_bytes(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = base_model()
    expected = pin()
    # A letter of a shard's name.
    at = hub.models["org/model"].files[INDEX].index(b"00002-of")  # type: ignore[union-attr]
    hub.faults = [Fault("resolve-cache", "corrupt", after=at, times=1)]
    assert pin() == expected
    hub.faults = [Fault("resolve-cache", "corrupt", after=at)]
    assert f"wrong bytes were sent for {INDEX}, twice" in refusal(pin)


@pytest.mark.parametrize(
    "siblings",
    [
        [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}],
        [{"rfilename": "config.json", "size": 5, "blobId": "x"}, {"rfilename": "model.safetensors", "lfs": {}}],
    ],
)
def test_mirror_that_leaves_digests_out(
    hub: HubStandIn, pin: Callable[..., dict[str, Any]], siblings: list[Any]
) -> None:
    body = json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
    hub.faults = [Fault("/api/models", "status", 200, {}, body)]
    message = refusal(pin)
    assert "does not say size and digest of" in message
    assert "HF_ENDPOINT" in message


def test_gated_missing_and_no_token(
    hub: HubStandIn, pin: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["org/model"] = base_model(gated=True)
    assert "org/model is gated" in refusal(pin)
    assert "no model of that name" in refusal(pin, "org/none")
    assert "has no revision 'v9'" in refusal(pin, "org/model@v9")
    assert "Expected org/name" in refusal(pin, "org/model@../x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert TOKEN not in json.dumps(pin())


# Without the hub.


@pytest.mark.parametrize("offline", [True, False])
def test_cache_is_pinned_as_the_hub_would_be(
    hub: HubStandIn,
    pin: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    offline: bool,
) -> None:
    caplog.set_level(logging.INFO, "ollamake")
    hub.models["org/model"], hub.models["me/adapter"] = base_model(), adapter_model()
    expected = pin("org/model", "me/adapter")
    cache = download_to_cache(hub)
    download_to_cache(hub, "me/adapter")
    before = tree(cache)
    gone = nobody()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    caplog.clear()
    assert pin("org/model", "me/adapter", endpoint=gone) == expected
    assert "pinned as it is in the cache of huggingface_hub" in caplog.text
    assert not hub.requests
    assert tree(cache) == before
    # By its commit as well; not by a name under which nothing was downloaded.
    assert pin(f"org/model@{COMMIT}", endpoint=gone)["base"]["folder"] == expected["base"]["folder"]
    message = refusal(pin, "org/model@v2", endpoint=gone)
    assert "org/model@v2 is to be fetched from the hub" in message
    assert "does not have v2 of it" in message
    assert ("Unset HF_HUB_OFFLINE" in message) == offline
    # What is pinned needs neither.
    shutil.rmtree(cache)
    assert pin("org/model", "me/adapter", endpoint=gone, former=expected) == expected


def test_cache_of_single_downloads(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    """There the list of all files is not known: what was downloaded is taken for it."""
    hub.models["org/model"] = base_model()
    expected = pin()
    needed = list(expected["base"]["content"])
    for name in needed[1:]:
        hf_hub_download("org/model", name, endpoint=hub.address)
    gone = nobody()
    message = refusal(pin, endpoint=gone)
    assert "offline: 127.0.0.1:" in message
    assert f"does not have {needed[0]}. Run again" in message
    hf_hub_download("org/model", needed[0], endpoint=hub.address)
    assert pin(endpoint=gone) == expected


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"allow_patterns": ["*.json"]}, "model-00001-of-00003.safetensors"),
        ({"ignore_patterns": ["tokenizer.json"]}, "tokenizer.json"),
        ({"ignore_patterns": [INDEX]}, INDEX),
        ({"ignore_patterns": ["config.json"]}, "config.json"),
    ],
)
def test_cache_that_has_a_part(
    hub: HubStandIn, pin: Callable[..., dict[str, Any]], options: dict[str, Any], missing: str
) -> None:
    hub.models["org/model"] = base_model()
    download_to_cache(hub, **options)
    assert f"does not have {missing}" in refusal(pin, endpoint=nobody())


def test_cache_without_weights_of_which_no_list_is_known(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = base_model()
    hf_hub_download("org/model", "config.json", endpoint=hub.address)
    assert "does not have all of it (of its files: config.json)" in refusal(pin, endpoint=nobody())


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "config.json"])
def test_damaged_blob_is_not_pinned(
    hub: HubStandIn,
    pin: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    hashed: bool,
) -> None:
    """Its size is known from the cache only."""
    monkeypatch.setattr(hub_pin, "_HASHED_AT_MOST", 1000 if hashed else 0)
    hub.models["org/model"] = base_model()
    cache = download_to_cache(hub)
    blob = (cache / f"models--org--model/snapshots/{COMMIT}/{name}").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    message = refusal(pin, endpoint=nobody())
    if hashed or name == "config.json":
        assert f"does not have {name}" in message
        assert f"{blob} in the cache of huggingface_hub is damaged: its " in caplog.text
    else:
        assert message.startswith(f"{blob} is truncated or damaged")


def test_renewing_needs_the_hub(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = base_model()
    former = pin()
    download_to_cache(hub)
    message = refusal(pin, former=former, renew=True, endpoint=nobody())
    assert "it cannot be told what that is now: offline: 127.0.0.1:" in message


def test_index_in_the_cache_is_not_fetched(hub: HubStandIn, pin: Callable[..., dict[str, Any]]) -> None:
    hub.models["org/model"] = base_model()
    cache = download_to_cache(hub)
    expected = pin()
    assert len(hub.requests) == 1
    (cache / f"models--org--model/snapshots/{COMMIT}/{INDEX}").resolve().write_text("{}")
    assert pin() == expected


# The script.


def test_script(hub: HubStandIn, tmp_path: Path) -> None:
    hub.models["org/model"], hub.models["me/adapter"] = base_model(private=True), adapter_model()
    output = tmp_path / "results/m/sources.json"
    spec = json.dumps({"format": 1, "base": "org/model", "adapters": [None, "me/adapter"]})
    done = run_on_hub("pin_sources.py", hub, tmp_path, "--spec", spec, "--output", str(output), HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    first = output.read_bytes()
    assert json.loads(first)["base"]["commit"] == COMMIT
    assert f"org/model is commit {COMMIT[:12]} (2026-11-02): 3 shards, 0.0 MB, 4 other files" in done.stderr
    assert f"me/adapter is commit {COMMIT[:12]} (2026-11-02): adapter, 0.0 MB, 2 other files" in done.stderr
    assert TOKEN not in done.stderr + first.decode()
    hub.requests.clear()
    hub.models["org/model"].push(LATER, {"config.json": b"{ }"})
    done = run_on_hub("pin_sources.py", hub, tmp_path, "--spec", spec, "--output", str(output), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == first
    assert not hub.requests
    done = run_on_hub(
        "pin_sources.py", hub, tmp_path, "--spec", spec, "--output", str(output), "--renew", HF_TOKEN=TOKEN
    )
    assert json.loads(output.read_bytes())["base"]["commit"] == LATER


def test_script_says_how_much_is_here_already(hub: HubStandIn, tmp_path: Path) -> None:
    hub.models["org/model"] = model = Model({"config.json": b"{}", "model.safetensors": bytes(2_500_000)})
    snapshot_download("org/model", endpoint=hub.address, cache_dir=tmp_path / "home/hub")
    model.push(LATER, {"config.json": b"{ }"})
    output = tmp_path / "sources.json"
    spec = '{"format": 1, "base": "org/model", "adapters": []}'
    done = run_on_hub("pin_sources.py", hub, tmp_path, "--spec", spec, "--output", str(output))
    assert "1 shard, 2.5 MB, 1 other file; 2.5 MB of it in the cache of huggingface_hub" in done.stderr
    hub.models.clear()
    output.unlink()
    done = run_on_hub("pin_sources.py", hub, tmp_path, "--spec", spec, "--output", str(output))
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no folder 'org/model' here")
    assert done.stderr.count("\n") == 1
    assert not output.exists()
