"""A base and an adapter from the Hugging Face hub: pinned once, fetched once, and nothing asked again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dag_build import Build
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from snakemake_runs import REPOSITORY
from stand_in.hub import TOKEN, Fault, HubStandIn, hub_stand_in
from stand_in.hub_repository import repository_of

from ollamake.file_digest import sha256_of

SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def hub(finished: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """The hub with org/small and org/tuned, which are the base and the adapter of the finished build."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub_stand_in() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.address)
        for repo, folder in (("org/small", "base"), ("org/tuned", "adapter")):
            model = repository_of(finished.folder / folder)
            model.files["README.md"] = b"# Not needed"
            model.files["pytorch_model.bin"] = b"not needed either"
            stand_in.models[repo] = model
        yield stand_in


@pytest.fixture
def fresh(finished: Build, tmp_path: Path) -> Build:
    """The configuration of the finished build with ids of the hub in place of folders; nothing is built."""
    config = json.loads(json.dumps(finished.config))
    config["models"]["small"] |= {"base": "org/small", "adapter": "org/tuned"}
    build = Build(tmp_path / "work", config)
    build.folder.mkdir()
    build.write_config()
    return build


@pytest.fixture(scope="module")
def built_on_hub(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, list[Any]]:
    """A build of both from the hub, and the requests that the hub saw."""
    home = tmp_path_factory.mktemp("hub")
    config = json.loads(json.dumps(finished.config))
    config["models"]["small"] |= {"base": "org/small", "adapter": "org/tuned"}
    build = Build(home / "work", config)
    build.folder.mkdir()
    build.write_config()
    with pytest.MonkeyPatch.context() as patch, hub_stand_in() as stand_in:
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_ENDPOINT", stand_in.address)
        patch.setenv("HF_TOKEN", TOKEN)
        for repo, folder in (("org/small", "base"), ("org/tuned", "adapter")):
            model = repository_of(finished.folder / folder)
            model.files["README.md"] = b"# Not needed"
            model.gated = True
            stand_in.models[repo] = model
        build.run("--cores", "2", "all")
        requests = list(stand_in.requests)
        again = build.run("--cores", "2", "all")
        assert "Nothing to be done" in again
        assert stand_in.requests == requests, "a run with nothing to do asks the hub nothing"
    return build, requests


@pytest.fixture
def build(built_on_hub: tuple[Build, list[Any]], tmp_path: Path) -> Build:
    """A copy of the build from the hub, to be edited."""
    source, _ = built_on_hub
    shutil.copytree(source.folder, tmp_path / "work", symlinks=True)
    return Build(tmp_path / "work", json.loads(json.dumps(source.config)))


def folder_of(build: Build, kind: str = "base") -> Path:
    sources = json.loads((build.folder / "results/small/sources.json").read_text(encoding="utf-8"))
    source = sources["base"] if kind == "base" else sources["adapters"][0]
    return build.folder / source["folder"]


def test_the_same_bytes_as_from_folders(built_on_hub: tuple[Build, list[Any]], finished: Build) -> None:
    build, _ = built_on_hub
    merged = sorted(file.name for file in (finished.folder / "results/small/merged").iterdir())
    for file in [f"merged/{name}" for name in merged if name != "model_files.json"] + [
        "gguf/small.Q4_K_M.gguf",
        "gguf/small.Q8_0.gguf",
        "ollama/Q4_K_M/Modelfile",
    ]:
        here, there = (one.folder / "results/small" / file for one in (build, finished))
        assert sha256_of(here) == sha256_of(there), file
    assert (build.folder / "results/small/ollama/Q4_K_M/registered.json").exists()


def test_each_needed_file_is_fetched_once_and_no_other(built_on_hub: tuple[Build, list[Any]], finished: Build) -> None:
    _, requests = built_on_hub
    infos = [request.path for request in requests if request.path.startswith("/api/models/")]
    assert sorted(infos) == ["/api/models/org/small/revision/main", "/api/models/org/tuned/revision/main"]
    whole = [request for request in requests if request.server == "cdn" and not request.range]
    needed = [f"/org/small/{shard}" for shard in SHARDS] + ["/org/tuned/adapter_model.safetensors"]
    assert sorted(request.path for request in whole) == needed
    asked = {request.path.rpartition("/")[2] for request in requests}
    assert "README.md" not in asked
    assert {file.name for file in (finished.folder / "base").iterdir()} <= asked


def test_the_token_stands_nowhere(built_on_hub: tuple[Build, list[Any]]) -> None:
    """Both repositories are gated, so it was used; the signature of the CDN's addresses is as secret."""
    build, requests = built_on_hub
    assert any(request.authorization == f"Bearer {TOKEN}" for request in requests)
    assert not any(request.authorization for request in requests if request.server == "cdn")
    for file in build.folder.rglob("*"):
        if file.is_file() and file.stat().st_size < 50_000_000:
            content = file.read_bytes()
            assert TOKEN.encode() not in content, file
            assert b"X-Signature" not in content, file


def test_nothing_to_do_without_a_hub(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert build.planned() == {}
    build.config["models"]["small"]["quantizations"].append("Q6_K")
    build.write_config()
    build.run("--cores", "2", "all")
    assert (build.folder / "results/small/ollama/Q6_K/registered.json").exists()


def test_a_branch_that_moves_is_followed_when_that_is_asked(build: Build, hub: HubStandIn) -> None:
    """A commit of the README alone rebuilds nothing, one of the adapter all that is made of it."""
    moved = "f" * 40
    for repo in ("org/small", "org/tuned"):
        hub.models[repo].push(moved, {"README.md": b"# Another text"})
    assert build.planned() == {}
    assert hub.requests == []
    build.run("--cores", "2", "--forcerun", "pin_sources", "--", "merged")
    sources = json.loads((build.folder / "results/small/sources.json").read_text(encoding="utf-8"))
    assert {sources["base"]["commit"], sources["adapters"][0]["commit"]} == {moved}
    assert {request.path for request in hub.requests} <= {
        "/api/models/org/small/revision/main",
        "/api/models/org/tuned/revision/main",
        *(f"/org/small/resolve/{moved}/{name}" for name in ("config.json", "model.safetensors.index.json")),
        *(
            f"/api/resolve-cache/models/org/small/{moved}/{name}"
            for name in ("config.json", "model.safetensors.index.json")
        ),
        f"/org/tuned/resolve/{moved}/adapter_config.json",
        f"/api/resolve-cache/models/org/tuned/{moved}/adapter_config.json",
    }
    assert build.planned() == {}

    weights = build.folder / "adapter_model.safetensors"
    own = folder_of(build, "adapter") / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(own).items()}, weights)
    hub.models["org/tuned"].push("e" * 40, {"adapter_model.safetensors": weights.read_bytes()})
    assert build.planned() == {}
    printed = build.run("--cores", "2", "--forcerun", "pin_sources", "--", "merged")
    assert printed.count("Merging shard") == 3
    assert printed.count("Fetching adapter_model.safetensors") == 1
    assert "Fetching model-0" not in printed
    assert build.planned("merged") == {}
    assert build.planned()["convert_to_gguf"] == 1


def test_another_model_with_the_same_base_fetches_nothing(build: Build, hub: HubStandIn) -> None:
    """It is pinned to the commit that the first one has, wherever the branch is now."""
    commit = hub.models["org/small"].commit
    hub.models["org/small"].push("d" * 40, {"config.json": b"{}"})
    build.config["models"]["other"] = {"base": "org/small", "quantizations": ["Q8_0"]}
    build.write_config()
    build.run("--cores", "2", "merged")
    sources = json.loads((build.folder / "results/other/sources.json").read_text(encoding="utf-8"))
    assert sources["base"]["commit"] == commit
    assert hub.requests == []


def test_another_revision_is_another_source(build: Build, hub: HubStandIn) -> None:
    hub.models["org/small"].revisions = ("main", "v2")
    build.config["models"]["small"]["base"] = "org/small@v2"
    assert build.planned()["pin_sources"] == 1
    build.run("--cores", "2", "merged")
    asked = {request.path for request in hub.requests}
    assert "/api/models/org/small/revision/v2" in asked
    assert not [path for path in asked if "org/tuned" in path], "the adapter keeps its pin"
    # The same content: nothing is fetched or merged again.
    assert not any(request.server == "cdn" for request in hub.requests)


def test_a_cache_is_linked_and_stays_as_it_is(fresh: Build, hub: HubStandIn, tmp_path: Path) -> None:
    for repo in ("org/small", "org/tuned"):
        snapshot_download(repo, endpoint=hub.address, cache_dir=tmp_path / "hf/hub")
    before = listing(tmp_path / "hf/hub")
    hub.requests.clear()
    fresh.run("--cores", "2", "merged")
    assert listing(tmp_path / "hf/hub") == before
    assert all(request.path.startswith("/api/models/") for request in hub.requests), "no file was asked for"
    for shard in SHARDS:
        link = folder_of(fresh) / shard
        assert link.is_symlink()
        assert link.resolve().parent == (tmp_path / "hf/hub/models--org--small/blobs").resolve()


def test_offline_from_the_cache_alone(
    fresh: Build, hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo in ("org/small", "org/tuned"):
        snapshot_download(repo, endpoint=hub.address, cache_dir=tmp_path / "hf/hub")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh.run("--cores", "2", "merged")
    assert hub.requests == []


def test_a_killed_download_goes_on_where_it_was(fresh: Build, hub: HubStandIn) -> None:
    content = hub.models["org/small"].files[SHARDS[1]]
    assert isinstance(content, bytes)
    hub.faults.append(Fault(rf"cdn GET .*/{SHARDS[1]}$", "slow", rate=200_000))
    partial = None
    with started(fresh, "--cores", "1", "merged") as run:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and run.poll() is None:
            partial = next(fresh.folder.glob(f"resources/hub/org/small/*/{SHARDS[1]}.partial"), None)
            if partial is not None and partial.stat().st_size >= len(content) // 4:
                break
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert partial is not None
    had = partial.stat().st_size
    assert 0 < had < len(content)
    assert not (folder_of(fresh) / SHARDS[1]).exists()
    hub.faults.clear()
    hub.requests.clear()
    fresh.run("--cores", "1", "merged")
    assert hub.sent
    again = [request for request in hub.requests if request.path == f"/org/small/{SHARDS[1]}"]
    assert [(request.range, request.sent) for request in again] == [(f"bytes={had}-", len(content) - had)]
    assert (folder_of(fresh) / SHARDS[1]).read_bytes() == content


def test_shards_are_merged_while_others_still_download(fresh: Build, hub: HubStandIn) -> None:
    hub.faults.append(Fault(rf"cdn GET .*/{SHARDS[2]}$", "slow", rate=10_000))
    with started(fresh, "--cores", "2", "merged") as run:
        first = fresh.folder / f"results/small/merged/{SHARDS[0]}"
        deadline = time.monotonic() + 120
        while not first.exists() and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.05)
        assert first.exists()
        assert not (folder_of(fresh) / SHARDS[2]).exists()
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_downloads_that_are_not_kept(fresh: Build, hub: HubStandIn) -> None:
    fresh.config["keep"] = {"downloads": False}
    fresh.write_config()
    fresh.run("--cores", "2", "merged")
    folder = folder_of(fresh)
    assert not [shard for shard in SHARDS if (folder / shard).exists()]
    assert (folder / "config.json").exists()
    hub.requests.clear()
    assert fresh.planned("merged") == {}
    assert hub.requests == []


def test_what_does_not_fit_is_said_before_anything_large_is_fetched(fresh: Build, hub: HubStandIn) -> None:
    """Base and adapter are told apart by the headers, which are parts of the files; of a shard no more is asked for."""
    weights = fresh.folder / "narrow.safetensors"
    adapter = hub.models["org/tuned"].files["adapter_model.safetensors"]
    assert isinstance(adapter, bytes)
    weights.write_bytes(adapter)
    save_file({name: tensor[:, :64].contiguous() for name, tensor in load_file(weights).items()}, weights)
    hub.models["org/tuned"].push("c" * 40, {"adapter_model.safetensors": weights.read_bytes()})
    printed = fresh.run_to_failure("--cores", "2", "all")
    assert "does not fit" in printed[printed.rindex("check_inputs failed") :]
    asked = [request for request in hub.asked("cdn") if request.path.startswith("/org/small/")]
    assert asked
    assert all(request.range for request in asked), "headers alone"
    assert not (folder_of(fresh) / SHARDS[0]).exists()


@pytest.mark.parametrize(
    ("base", "fault", "words"),
    [
        ("org/nothing", None, ["org/nothing", "HF_TOKEN"]),
        ("org/small@v9", None, ["org/small has no revision 'v9'"]),
        ("org/gated", None, ["org/gated is gated", "HF_TOKEN"]),
        ("org/tuned", None, ["org/tuned is an adapter"]),
        ("org/small", Fault("hub GET /api/models/.*", "status", 429, {"Retry-After": "3600"}), ["429", "3600 s"]),
    ],
    ids=["no such model", "no such revision", "gated", "an adapter", "rate limited"],
)
def test_what_the_hub_refuses_is_one_message(
    fresh: Build, hub: HubStandIn, base: str, fault: Fault | None, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["org/gated"] = replace(hub.models["org/small"], gated=True)
    if fault:
        hub.faults.append(fault)
    monkeypatch.setenv("HF_TOKEN", "hf_OfAnotherAccount") if base == "org/nothing" else None
    fresh.config["models"]["small"]["base"] = base
    fresh.write_config()
    printed = fresh.run_to_failure("--cores", "1", "all")
    said = printed[printed.rindex("pin_sources failed") :]
    for word in words:
        assert word in said
    assert "Traceback" not in printed
    assert not (fresh.folder / "results/small").exists() or not list((fresh.folder / "results/small").iterdir())


def test_a_wrong_path_is_not_looked_for_on_the_hub(fresh: Build, hub: HubStandIn) -> None:
    """The folder above it is here, so it was meant for a path."""
    (fresh.folder / "runs").mkdir()
    fresh.config["models"]["small"]["adapter"] = "runs/adaptor"
    fresh.write_config()
    printed = fresh.run_to_failure("-n", "all")
    assert "models.small.adapter: the folder 'runs/adaptor' does not exist" in printed
    assert hub.requests == []


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file and link below a folder with its size and time."""
    return {
        str(file.relative_to(folder)): (file.lstat().st_size, file.lstat().st_mtime_ns)
        for file in folder.rglob("*")
        if not file.is_dir() or file.is_symlink()
    }


class started:
    """A run of Snakemake in a group of its own, which is ended with it."""

    def __init__(self, build: Build, *arguments: str) -> None:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
        command += ["--directory", str(build.folder), "--workflow-profile", str(REPOSITORY / "profiles/default")]
        self._command = [*command, "--configfile", "mine.yaml", *arguments]
        self._folder = build.folder

    def __enter__(self) -> subprocess.Popen[bytes]:
        with (self._folder / "run.log").open("wb") as log:
            self._run = subprocess.Popen(
                self._command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        return self._run

    def __exit__(self, *_: object) -> None:
        if self._run.poll() is None:
            os.killpg(self._run.pid, signal.SIGKILL)
            self._run.wait()
