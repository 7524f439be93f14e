"""Weights as .safetensors and as the .bin of torch.save are read alike; nothing in a .bin is executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from merging import load_all, merge_checkpoint
from safetensors.torch import load_file, save_file
from small_models import lora, random_model, save_adapter

from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.shard_stream import merge_shard
from ollamake.weight_file import WeightFile, read_entries


def as_bins(base: Path, folder: Path) -> Path:
    """Write a safetensors checkpoint again as older models are stored: pytorch_model-*.bin with an index."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    weight_map = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors = load_file(file)
        name = file.name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        torch.save(dict(reversed(tensors.items())), folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_base_in_bins_merges_to_the_same_weights(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base("llama", torch.bfloat16, False)
    adapter = make_adapter(base)
    bins = as_bins(base, tmp_path / "bins")
    merge_checkpoint(base, [adapter], tmp_path / "one")
    plan = merge_checkpoint(bins, [adapter], tmp_path / "two")
    one, two = load_all(tmp_path / "one"), load_all(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    record = merge_shard(plan, plan["shards"][0]["file"], tmp_path / "again.safetensors", 1)
    assert record["base"]["sha256"] == sha256_of(Path(plan["shards"][0]["base"]))


def test_a_single_bin_with_buffers_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tensors = {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "wte.weight": torch.randn(6, 4).t(),
        "n": torch.tensor(3),
    }
    torch.save(tensors, tmp_path / "base/pytorch_model.bin")
    (tmp_path / "base/config.json").write_text("{}")
    merge_checkpoint(tmp_path / "base", [], tmp_path / "merged")
    merged = load_all(tmp_path / "merged")
    assert all(torch.equal(merged[name], tensors[name]) for name in tensors)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/ollamake-was-here",)


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_code_in_a_pickle_is_refused_not_run(
    make_base: Callable[..., Path], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    base = make_base()
    if where == "base":
        folder = as_bins(base, tmp_path / "bins")
        torch.save({"x": Evil()}, next(folder.glob("*.bin")))
        with pytest.raises(OllamakeError, match=r"holds code, which is not run"):
            read_checkpoint(str(folder), "base")
    else:
        save_adapter(base, tmp_path / "adapter", lora()(), safetensors=False)
        (tmp_path / "adapter/adapter_model.bin").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(OllamakeError, match=r"adapter_model.bin is not a file of tensors"):
            read_adapter(tmp_path / "adapter")
    assert not ran


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_damaged_bins(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(OllamakeError, match=r"x\.bin .*Save the model again"):
        read_entries(tmp_path / "x.bin")


def test_other_content(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "x.bin")
    with pytest.raises(OllamakeError, match="something else than tensors by name"):
        read_entries(tmp_path / "x.bin")
    torch.save({"z": torch.ones(2, dtype=torch.complex128)}, tmp_path / "x.bin")
    with pytest.raises(OllamakeError, match=r"'z' has the dtype torch\.complex128"):
        read_entries(tmp_path / "x.bin")


def test_release_keeps_what_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollamake.weight_file._HELD", 4096)
    tensors = {f"t{n}": torch.randn(4096) for n in range(8)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = WeightFile(read_entries(tmp_path / "x.safetensors"))
    views = {}
    for name in tensors:
        views[name] = file.read(name, 0, 4096 * 4)
        file.release(name, 0)
    for name, view in views.items():
        assert torch.equal(torch.frombuffer(view, dtype=torch.float32), tensors[name])


def test_float8_blocks(tmp_path: Path) -> None:
    """DeepSeek's layout: float8 values and one float32 scale for each block, dequantized as the stream passes."""
    torch.manual_seed(0)
    model = random_model("llama", torch.bfloat16, False)
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    index = json.loads((tmp_path / "base/model.safetensors.index.json").read_text())["weight_map"]
    exact, scales_file = {}, sorted(set(index.values()))[0]
    moved = {}
    for file in sorted(set(index.values())):
        tensors = load_file(tmp_path / "base" / file)
        for name in [name for name in tensors if "proj" in name]:
            rows, columns = tensors[name].shape
            scales = torch.rand(-(-rows // 16), -(-columns // 16)) * 0.01 + 0.001
            wide = scales.repeat_interleave(16, 0)[:rows].repeat_interleave(16, 1)[:, :columns]
            tensors[name] = (tensors[name].float() / wide).to(torch.float8_e4m3fn)
            exact[name] = tensors[name].double() * wide.double()
            moved[f"{name}_scale_inv"] = scales
        save_file(tensors, tmp_path / "base" / file)
    first = load_file(tmp_path / "base" / scales_file)
    save_file(first | moved, tmp_path / "base" / scales_file)  # the scales of all in one shard: some lie elsewhere
    index |= dict.fromkeys(moved, scales_file)
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads((tmp_path / "base/config.json").read_text())
    quantized = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"quantization_config": quantized}))

    halves = {"lora_A": torch.randn(4, 64), "lora_B": torch.randn(64, 4) * 0.01}
    adapter = tmp_path / "adapter"
    lora(target_modules=["q_proj"])().save_pretrained(adapter)
    name = "model.layers.1.self_attn.q_proj"
    save_file(
        {f"base_model.model.{name}.{h}.weight": t for h, t in halves.items()}, adapter / "adapter_model.safetensors"
    )
    exact[f"{name}.weight"] = exact[f"{name}.weight"] + 2 * (halves["lora_B"].double() @ halves["lora_A"].double())
    merge_checkpoint(tmp_path / "base", [adapter], tmp_path / "merged")
    merged = load_all(tmp_path / "merged")
    assert not any("scale" in name for name in merged)
    for name, values in exact.items():
        assert merged[name].dtype == torch.float16
        assert torch.allclose(merged[name].double(), values, rtol=2**-11, atol=1e-7), name
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())

    (tmp_path / "base/config.json").write_text(
        json.dumps(config | {"quantization_config": quantized | {"weight_block_size": [32, 32]}})
    )
    with pytest.raises(OllamakeError, match=r"block scales \(32 x 32\) are missing or do not fit"):
        read_checkpoint(str(tmp_path / "base"), "base")
