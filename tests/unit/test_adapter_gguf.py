"""An adapter's GGUF: which scale it is given, what it is compared with, and how it is registered, stored and verified."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from merging import plan_of
from peft import LoraConfig, PeftModel
from small_models import load_base, lora, random_model, save_adapter

from ollamake.adapter_conversion import Update, convert_adapter, require_same_update, updates_of
from ollamake.adapter_gguf import adapter_record, read_adapter_gguf, require_fitting
from ollamake.create_request import CreateRequest, compose_request, read_create_request, request_of_marker
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.modelfile import modelfile_text
from ollamake.ollama_manifest import form_of_version, manifest_of
from ollamake.ollama_server import ShownModel
from ollamake.ollama_store import OllamaStore
from ollamake.registration import Place, marker_differences, register
from ollamake.verification import shown_differences, store_differences

CONVERTER = """
import json, sys
from pathlib import Path
from gguf import GGUFWriter
from safetensors.numpy import load_file

folder, output = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
tensors = load_file(folder / "adapter_model.safetensors")
writer = GGUFWriter(output, "llama")
writer.add_name(folder.name)
writer.add_type("adapter")
writer.add_string("adapter.type", "lora")
writer.add_float32("adapter.lora.alpha", json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] * FACTOR)
for name, tensor in list(tensors.items())[SKIPPED:]:
    name = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight.lora_a")
    writer.add_tensor(name.replace(".lora_B.weight", ".weight.lora_b"), tensor)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
"""A converter that writes what it is given, under the names that it is given."""


def converter(folder: Path, factor: float = 1.0, skipped: int = 0) -> Path:
    """Write that converter, with a fault, beside the place of the other; return the latter."""
    text = CONVERTER.replace("FACTOR", str(factor)).replace("SKIPPED", str(skipped))
    (folder / "convert_lora_to_gguf.py").write_text(text, encoding="utf-8")
    return folder / "convert_hf_to_gguf.py"


OPTIONS: dict[str, Callable[[], LoraConfig]] = {
    "plain": lora(),
    "rslora": lora(use_rslora=True, r=6, lora_alpha=3),
    "ranks": lora(rank_pattern={"q_proj": 2, r".*\.1\..*down_proj": 7}),
    "alphas": lora(alpha_pattern={"q_proj": 3, r".*\.1\..*down_proj": 0}),
    "both, and rslora": lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3, "o_proj": 7}),
    "alpha of 0": lora(lora_alpha=0),
}


@pytest.mark.parametrize("weight", [1.0, -0.3])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_update_is_peft_s_times_the_weight(tmp_path: Path, options: str, weight: float) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    random_model("llama", torch.float32, False).save_pretrained(base)
    save_adapter(base, adapter, OPTIONS[options]())
    updates = updates_of(plan_of(base, adapter, weights=[weight]))
    convert_adapter(converter(tmp_path), updates, base, "m", tmp_path / "m.gguf")
    found = read_adapter_gguf(tmp_path / "m.gguf")
    require_same_update(updates, found, tmp_path / "m.gguf")
    modules = dict(PeftModel.from_pretrained(load_base(base, torch.float32), adapter).double().named_modules())
    expected = {
        f"{name.removeprefix('base_model.model.')}.weight": weight * module.get_delta_weight("default").detach().numpy()
        for name, module in modules.items()
        if hasattr(module, "get_delta_weight")
    }
    assert found.pairs.keys() == expected.keys()
    for name, delta in expected.items():
        assert np.abs(found.delta(name) - delta).max() <= 3e-7 * np.abs(delta).max()
    exact = float(np.sqrt(sum((delta**2).sum() for delta in expected.values())))
    assert found.norm == pytest.approx(exact, rel=1e-7)
    # Most weights have the matrices that were trained, to the bit.
    as_trained = 0
    for name, halves in found.pairs.items():
        module: Any = modules[f"base_model.model.{name.removesuffix('.weight')}"]
        trained = (module.lora_A["default"].weight, module.lora_B["default"].weight)
        pairs = zip(halves, trained, strict=True)
        as_trained += all(np.array_equal(half, weight.detach().numpy()) for half, weight in pairs)
    assert as_trained >= (0 if options == "alpha of 0" else len(expected) / 2)


def update(name: str = "w.weight", alpha: float = 4.0, rank: int = 2) -> Update:
    generator = torch.Generator().manual_seed(rank)
    a, b = torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator)
    return Update(name, a, b, alpha / rank)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            {"factor": 1.00001},
            r"expected 2 weights with an update of norm (\S+), llama.cpp's converter wrote 2 of norm (?!\1)\S+\.",
        ),
        ({"factor": -0.5}, "wrote 2 of norm"),
        ({"skipped": 2}, "wrote 1 of norm"),
    ],
)
def test_a_converter_that_changes_the_update(tmp_path: Path, fault: dict[str, Any], said: str) -> None:
    updates = [update("v.weight"), update("w.weight", rank=3)]
    convert_adapter(converter(tmp_path, **fault), updates, tmp_path, "m", tmp_path / "m.gguf")
    with pytest.raises(OllamakeError, match=said):
        require_same_update(updates, read_adapter_gguf(tmp_path / "m.gguf"), tmp_path / "m.gguf")


def test_a_converter_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "convert_lora_to_gguf.py").write_text("raise NotImplementedError('no such model')", "utf-8")
    with pytest.raises(OllamakeError, match="no such model"):
        convert_adapter(tmp_path / "convert_hf_to_gguf.py", [update()], tmp_path, "m", tmp_path / "m.gguf")
    (tmp_path / "convert_lora_to_gguf.py").unlink()
    with pytest.raises(
        OllamakeError, match=r"has no convert_lora_to_gguf\.py: this llama\.cpp is too old.*tools\.llama_cpp"
    ):
        convert_adapter(tmp_path / "convert_hf_to_gguf.py", [update()], tmp_path, "m", tmp_path / "m.gguf")


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    """In whatever folder it was converted."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        convert_adapter(converter(tmp_path), [update()], tmp_path, "m", tmp_path / folder / "m.gguf")
    assert sha256_of(tmp_path / "one/m.gguf") == sha256_of(tmp_path / "two/m.gguf")


def test_the_record(tmp_path: Path) -> None:
    updates = [update("v.weight"), update("w.weight", rank=3)]
    convert_adapter(converter(tmp_path), updates, tmp_path, "m", tmp_path / "m.gguf")
    record = adapter_record(tmp_path / "m.gguf", "m.adapter.gguf", read_adapter_gguf(tmp_path / "m.gguf"))
    assert record.pop("update_norm") > 0
    assert record == {
        "file": "m.adapter.gguf", "type": "adapter", "architecture": "llama", "alpha": 4.0, "ranks": [2, 3], "weights": 2,
        "parameters": 5 * 11, "size": (tmp_path / "m.gguf").stat().st_size, "sha256": sha256_of(tmp_path / "m.gguf"),
    }  # fmt: skip


def model_gguf(path: Path, architecture: str, **shapes: tuple[int, int]) -> Path:
    writer = GGUFWriter(path, architecture)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "shapes", "said"),
    [
        ("llama", {"w": (5, 6), "v": (1, 1)}, None),
        ("qwen2", {"w": (5, 6)}, "it is for llama, the model is qwen2"),
        ("llama", {"w": (6, 5)}, "w.weight is [6, 5], the model has [5, 6]"),
        ("llama", {"v": (5, 6)}, "w.weight is [6, 5], the model has none"),
    ],
)
def test_whether_it_fits_a_model(tmp_path: Path, architecture: str, shapes: dict[str, Any], said: str | None) -> None:
    convert_adapter(converter(tmp_path), [update()], tmp_path, "m", tmp_path / "a.gguf")
    gguf = model_gguf(tmp_path / "m.gguf", architecture, **shapes)
    if said is None:
        require_fitting(tmp_path / "a.gguf", gguf)
        return
    with pytest.raises(OllamakeError, match=re.escape(said)):
        require_fitting(tmp_path / "a.gguf", gguf)


def test_a_file_that_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(OllamakeError, match="is not a whole GGUF of an adapter"):
        read_adapter_gguf(model_gguf(tmp_path / "m.gguf", "llama", w=(5, 6)))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(OllamakeError, match="is not a whole GGUF of an adapter"):
        read_adapter_gguf(tmp_path / "m.gguf")


# Request, store, verification ---------------------------------------------------------------------------------------

ADAPTER = "cd" * 32
REQUEST = CreateRequest("m:q8_0", "b.gguf", system="S", adapter="m.adapter.gguf", adapter_blob=(ADAPTER, 77))
RECORD = {"sha256": "ab" * 32, "size": 7000, "architecture": "qwen2", "parameters": 2048, "file_type": 7}


def test_the_request(tmp_path: Path) -> None:
    """What is written before the adapter is converted has its name; the digests come with the registration."""
    template = {"template": "T", "origin": "o", "end_of_turn": None}
    spec = {"name": "m:q8_0", "system": None, "license": [], "parameters": {}}
    composed = compose_request(spec, "b.gguf", template, {}, None, "m.adapter.gguf")
    (tmp_path / "r.json").write_text(json.dumps(composed.as_json()), encoding="utf-8")
    read = read_create_request(tmp_path / "r.json")
    assert (read.adapter, read.adapter_blob) == ("m.adapter.gguf", None)
    body = replace(read, adapter_blob=(ADAPTER, 77)).as_api("ab" * 32)
    assert body["adapters"] == {"m.adapter.gguf": f"sha256:{ADAPTER}"}
    assert body["files"] == {"b.gguf": f"sha256:{'ab' * 32}"}
    marker = {"name": "m:q8_0", "request": body, "adapter": {"size": 77}}
    assert request_of_marker(marker)[0] == replace(read, adapter_blob=(ADAPTER, 77), origins={})
    assert "adapters" not in compose_request(spec, "b.gguf", template, {}).as_api("ab" * 32)


def test_the_modelfile() -> None:
    text = modelfile_text(REQUEST, PurePosixPath("../b.gguf"), PurePosixPath("../m.adapter.gguf"))
    assert text.splitlines()[3:5] == ["FROM ../b.gguf", "ADAPTER ../m.adapter.gguf"]


@pytest.mark.parametrize(
    ("version", "source", "families"),
    [("0.17.4", f"/s/blobs/sha256-{ADAPTER}", 2), ("0.30.0", "m.adapter.gguf", 1), ("0.33.0", "m.adapter.gguf", 1)],
)
def test_the_manifest_of_each_version(version: str, source: str, families: int) -> None:
    """Read off server/create.go of 0.17.4 and 0.33; tests/e2e/test_adapter_only.py compares with both, byte for byte."""
    made = manifest_of(REQUEST, RECORD, form_of_version(version), f"/s/blobs/sha256-{'ab' * 32}")
    manifest = json.loads(made.content)
    assert [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]] == ["model", "adapter", "system"]
    assert manifest["layers"][1] == {
        "mediaType": "application/vnd.ollama.image.adapter", "digest": f"sha256:{ADAPTER}", "size": 77, "from": source,
    }  # fmt: skip
    config = json.loads(made.blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["model_families"] == ["qwen2"] * families


SHOWN = ShownModel("ab" * 32, "/b/sha256-ab", "S", "", "", {}, adapter=ADAPTER, adapter_path="/b/sha256-cd")


@pytest.mark.parametrize(
    ("request_", "shown", "said"),
    [
        (REQUEST, SHOWN, []),
        (REQUEST, replace(SHOWN, adapter="ef" * 32), [f"adapter: asked for sha256 {ADAPTER}, it has {'ef' * 32}"]),
        (REQUEST, replace(SHOWN, adapter=None), [f"adapter: asked for sha256 {ADAPTER}, it has None"]),
        (
            replace(REQUEST, adapter=None, adapter_blob=None), SHOWN,
            [f"adapter: asked for sha256 None, it has {ADAPTER}"],
        ),
    ],
)  # fmt: skip
def test_what_a_server_shows_of_it(request_: CreateRequest, shown: ShownModel, said: list[str]) -> None:
    assert list(shown_differences(request_, "ab" * 32, shown)) == said


@pytest.fixture
def registered(tmp_path: Path) -> tuple[OllamaStore, dict[str, Any]]:
    """A store with a model that has an adapter, and the marker."""
    made = []
    for name, size in (("b.gguf", 7000), ("m.adapter.gguf", 77)):
        file = tmp_path / name
        file.write_bytes(name.encode() * size)
        made.append((file, RECORD | {"sha256": sha256_of(file), "size": file.stat().st_size}))
    (gguf, record), adapter = made
    place = Place("store", None, str(tmp_path / "store"))
    marker = register(replace(REQUEST, adapter_blob=None), gguf, record, place, adapter)
    return OllamaStore(tmp_path / "store"), marker


def test_in_a_store(registered: tuple[OllamaStore, dict[str, Any]], tmp_path: Path) -> None:
    store, marker = registered
    assert marker_differences(marker, *request_of_marker(marker)) == []
    assert marker["adapter"] == {
        "file": str(tmp_path / "m.adapter.gguf"), "sha256": sha256_of(tmp_path / "m.adapter.gguf"), "size": 77 * 14,
    }  # fmt: skip
    blob = store.blob_file(marker["adapter"]["sha256"])
    assert blob.read_bytes() == (tmp_path / "m.adapter.gguf").read_bytes()


def test_a_store_whose_adapter_is_not_as_it_was(registered: tuple[OllamaStore, dict[str, Any]]) -> None:
    store, marker = registered
    request, weights = request_of_marker(marker)
    without = replace(request, adapter=None, adapter_blob=None)
    digest = marker["adapter"]["sha256"]
    assert store_differences(store, without, weights) == [f"adapter: not asked for, it has sha256 {digest}"]
    blob = store.blob_file(digest)
    content = blob.read_bytes()
    blob.unlink()
    (gone,) = marker_differences(marker, request, weights)
    assert gone.startswith(f"the blob of the adapter (sha256:{digest}) is missing")
    blob.write_bytes(content[::-1])
    (damaged,) = marker_differences(marker, request, weights)
    assert damaged.endswith("has other bytes than its name says: it is damaged")


def test_an_adapter_that_was_cut_short(tmp_path: Path) -> None:
    gguf, adapter = tmp_path / "b.gguf", tmp_path / "m.adapter.gguf"
    gguf.write_bytes(b"b" * 7000)
    adapter.write_bytes(b"a")
    place = Place("store", None, str(tmp_path / "store"))
    with pytest.raises(
        OllamakeError, match=r"m\.adapter\.gguf has 1 bytes, its record says 2: it was changed or cut short"
    ):
        register(REQUEST, gguf, RECORD, place, (adapter, {"sha256": "cd" * 32, "size": 2}))
