"""What is pinned of the hub is read for the graph: paths, identities, what is still to be downloaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stand_in.hub import HubStandIn
from stand_in.hub_repository import Model

from ollamake.disk_peak import DiskPeak
from ollamake.errors import OllamakeError
from ollamake.hub_pin import pin_sources
from ollamake.hub_room import bytes_to_fetch, with_downloads
from ollamake.pinned_sources import pinned_sources
from ollamake.source_files import is_on_hub, reads_across_shards, source_files

WEIGHTS = b"weights of a shard" * 100
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def pins(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources.json of org/model and me/adapter, as pin_sources writes it."""
    monkeypatch.chdir(tmp_path)
    hub.models["org/model"] = Model({"config.json": b'{"quantization_config": {}}', "model.safetensors": WEIGHTS})
    hub.models["me/adapter"] = Model(
        {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": WEIGHTS}
    )
    pinned = pin_sources({"format": 1, "base": "org/model", "adapters": [None, "me/adapter@main"]}, None)
    (tmp_path / "sources.json").write_text(json.dumps(pinned), encoding="utf-8")
    return tmp_path / "sources.json"


def test_what_is_read_is_what_was_pinned(pins: Path) -> None:
    sources = pinned_sources(pins)
    assert list(sources) == ["org/model", "me/adapter@main"]
    base = sources["org/model"]
    assert base.folder.startswith("resources/hub/org/model/")
    assert base.paths == ([f"{base.folder}/model.safetensors"], [f"{base.folder}/config.json"])
    assert base.digests() == {f"{base.folder}/model.safetensors": f"sha256:{SHA256}"}
    assert base.weights_bytes == len(WEIGHTS)
    assert base.file("model.safetensors") == {
        "repo": "org/model",
        "name": "model.safetensors",
        "size": len(WEIGHTS),
        "sha256": SHA256,
    }
    assert base.config == {"quantization_config": {}}
    with pytest.raises(OllamakeError, match=r"org/model at commit \w+ has no README.md that is needed"):
        base.file("README.md")


def test_a_file_that_changes_is_read_anew(pins: Path) -> None:
    before = pinned_sources(pins)["org/model"]
    content = json.loads(pins.read_text(encoding="utf-8"))
    content["base"]["commit"] = "f" * 40
    pins.write_text(json.dumps(content, indent=1), encoding="utf-8")
    after = pinned_sources(pins)["org/model"]
    assert (before.commit == after.commit, after.commit) == (False, "f" * 40)


@pytest.mark.parametrize("edit", ["base", "content", "no JSON"])
def test_a_damaged_file_is_named_with_what_to_do(pins: Path, edit: str) -> None:
    content: dict[str, Any] = json.loads(pins.read_text(encoding="utf-8"))
    if edit == "base":
        del content["base"]
    else:
        del content["base"]["content"]["model.safetensors"]
    pins.write_text("{" if edit == "no JSON" else json.dumps(content), encoding="utf-8")
    with pytest.raises(OllamakeError, match=r"sources.json"):
        pinned_sources(pins)


def test_what_is_here_or_in_the_cache_is_not_downloaded(pins: Path, hub: HubStandIn, tmp_path: Path) -> None:
    base = pinned_sources(pins)["org/model"]
    path = f"{base.folder}/model.safetensors"
    files = {path: base.file("model.safetensors")}
    assert bytes_to_fetch(files) == len(WEIGHTS)
    partial = tmp_path / f"{path}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:500])
    assert bytes_to_fetch(files) == len(WEIGHTS) - 500
    (tmp_path / path).write_bytes(WEIGHTS)
    assert bytes_to_fetch(files) == 0
    shutil.rmtree(partial.parent)
    assert bytes_to_fetch(files) == len(WEIGHTS)


def test_downloads_are_part_of_the_peak() -> None:
    peak = DiskPeak(100, "merging", 60, 0)
    assert with_downloads(peak, 0, keeps=True) == peak
    assert with_downloads(peak, 40, keeps=True) == DiskPeak(140, "merging", 100, 0)
    assert with_downloads(peak, 40, keeps=False) == DiskPeak(140, "merging", 60, 0)


def test_a_path_or_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/adapter").mkdir(parents=True)
    assert is_on_hub("org/model")
    assert is_on_hub("org/model@v1")
    for path in ("model", "/org/model", "../org/model", "org/model/deeper", "./org/model"):
        assert not is_on_hub(path), path
    assert not is_on_hub("runs/adapter"), "a folder that is here"
    assert not is_on_hub("runs/adaptor"), "the folder above it is here"
    assert is_on_hub("runs/adaptor@main")


def test_configurations_are_files_or_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}', encoding="utf-8")
    assert reads_across_shards(str(tmp_path / "config.json"))
    assert reads_across_shards({"quantization_config": {"quant_method": "fp8"}})
    assert not reads_across_shards({"hidden_size": 8}, {"peft_type": "LORA"})
    assert reads_across_shards({"hidden_size": 8}, {"peft_type": "LORA", "use_dora": True})


def test_a_folder_whose_shards_are_still_to_come(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OllamakeError, match=r"has none of model\.safetensors"):
        source_files("base", str(tmp_path), "models.m.base")
    headers = {"model.safetensors": {"size": 10, "header": "{}"}}
    (tmp_path / "headers.json").write_text(json.dumps(headers), encoding="utf-8")
    weights, _ = source_files("base", str(tmp_path), "models.m.base")
    assert weights == [f"{tmp_path}/model.safetensors"]
