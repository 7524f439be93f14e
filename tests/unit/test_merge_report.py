"""The report of a merge: sums that are right, warnings that name the cure, a picture that is the same for the same merge."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import load_all, merge_all, plan_of
from safetensors.torch import load_file, save_file

from ollamake.merge_plot import draw_merge
from ollamake.merge_report import layer_of, merge_report, projection_of


def report_of(base: Path, adapter: Path | None, folder: Path, dtype: str = "auto") -> dict[str, Any]:
    plan = plan_of(base, *([adapter] if adapter else []), dtype=dtype)
    return merge_report(plan, merge_all(plan, folder))


def test_sums(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.float32, False)
    adapter = make_adapter(base, modules_to_save=["norm"])
    report = report_of(base, adapter, tmp_path / "merged")
    before, after = load_all(base), load_all(tmp_path / "merged")
    for layer in ("0", "1", "other"):
        names = [name for name in report["tensors"] if layer_of(name) == layer]
        delta = sum(float((after[name].double() - before[name].double()).square().sum()) for name in names)
        size = sum(float(before[name].double().square().sum()) for name in names)
        assert report["layers"][layer]["relative_norm"] == pytest.approx((delta / size) ** 0.5, rel=1e-4)
        assert report["layers"][layer]["survival"] == pytest.approx(1, abs=1e-3)
    totals = report["totals"]
    assert (totals["tensors"], totals["edited"]) == (len(before), 14 + 5)  # peft takes "norm" for the end of a name
    largest = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert totals["largest_delta"] == pytest.approx(largest, rel=1e-4)
    assert report["inputs"].keys() >= {str(file) for file in base.glob("*.safetensors")}
    assert list(report["layers"]) == ["0", "1", "other"]
    assert report["warnings"] == []


def test_a_lossy_dtype_is_warned_of_with_its_cure(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base()
    adapter = make_adapter(base, size=1e-5)
    (warning,) = report_of(base, adapter, tmp_path / "bf16", "bfloat16")["warnings"]
    assert "of 14 of 14 updates less than 95% is stored" in warning
    assert "dtype: float16" in warning
    (warning,) = report_of(base, adapter, tmp_path / "f16", "float16")["warnings"]
    assert "dtype: float32" in warning


@pytest.mark.parametrize("all_of_them", [True, False])
def test_updates_of_zero(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, all_of_them: bool
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    file = adapter / "adapter_model.safetensors"
    zero = {
        n: t * 0 if "lora_B" in n and (all_of_them or "layers.1.mlp.up" in n) else t for n, t in load_file(file).items()
    }
    save_file(zero, file)
    (warning,) = report_of(base, adapter, tmp_path / "merged")["warnings"]
    expected = "the adapter changes nothing" if all_of_them else "1 of 14 updates are zero: model.layers.1.mlp.up_proj"
    assert warning.startswith(expected)


@pytest.mark.parametrize("with_adapter", [True, False])
def test_the_picture(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, with_adapter: bool
) -> None:
    base = make_base()
    report = report_of(base, make_adapter(base) if with_adapter else None, tmp_path / "merged")
    picture = draw_merge("road-design", report)
    assert picture == draw_merge("road-design", json.loads(json.dumps(report)))
    text = " ".join(ElementTree.fromstring(picture).itertext())
    assert ("q_proj" in text) == with_adapter
    assert ("no adapter" in text) != with_adapter
    assert "road-design" in text


def test_many_experts_become_a_range() -> None:
    one = {"delta_norm": 1.0, "survival": 0.999, "largest_delta": 0.1, "kind": "low_rank"}
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": one | {"relative_norm": 0.01 + expert / 1e3}
        for layer in range(4)
        for expert in range(16)
        for name in ("gate_proj", "up_proj", "down_proj", *(f"odd{n}" for n in range(8)))
    }
    planned = [{"name": name, "stored": "F16"} for name in tensors]
    plan = {
        "dtype": "auto",
        "config": {},
        "adapters": [{"path": "a", "weight": 1}],
        "shards": [{"file": "s", "tensors": planned}],
    }
    file = {"path": "b", "size": 1, "sha256": "0"}
    record = {"base": file, "others": [], "adapters": [], "output": {"file": "s"} | file, "tensors": tensors}
    text = " ".join(ElementTree.fromstring(draw_merge("moe", merge_report(plan, [record]))).itertext())
    assert "other" in text


def test_names() -> None:
    assert layer_of("model.layers.12.mlp.experts.3.up_proj.weight") == "12"
    assert layer_of("transformer.h.0.attn.c_attn.bias") == "0"
    assert layer_of("lm_head.weight") == "other"
    assert projection_of("model.layers.12.self_attn.q_proj.weight") == "q_proj"
