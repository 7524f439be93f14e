"""The merge equals peft's own in float64, rounded once; it is streamed, repeatable, and leaves nothing half-made."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import assert_rounded_once, load_all, merge_all, plan_of
from safetensors.torch import load_file, save_file
from small_models import merged_by_peft

from ollamake import shard_stream
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.shard_stream import merge_shard

SCRIPTS = Path(__file__).parents[2] / "scripts"


def operands_of(plan: dict[str, Any], base: Path, adapter: Path) -> dict[str, torch.Tensor | float]:
    """|W| + scale * |B| @ |A| of every edited tensor, in float64."""
    before, halves = load_all(base), load_file(adapter / "adapter_model.safetensors")
    sums: dict[str, torch.Tensor | float] = {}
    for tensor in (tensor for shard in plan["shards"] for tensor in shard["tensors"]):
        weight = before[tensor["source"]].to(torch.float64).abs()
        for edit in (edit for edit in tensor["edits"] if edit["kind"] == "low_rank"):
            weight = weight + edit["scale"] * (halves[edit["b"]].double().abs() @ halves[edit["a"]].double().abs())
        sums[tensor["name"]] = weight
    return sums


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 16},
    "patterns": {
        "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"v_proj": 32, r".*\.0\.mlp\.up_proj": 3},
    },
    "some layers": {"layers_to_transform": [1], "target_modules": ["q_proj", "o_proj"]},
    "norms saved": {"modules_to_save": ["norm", "input_layernorm"]},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("family", "dtype", "tied"),
    [("qwen2", torch.bfloat16, True), ("llama", torch.float16, False), ("llama", torch.float32, True)],
)
def test_equals_peft_in_float64_rounded_once(
    make_base: Callable[..., Path],
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    family: str,
    dtype: torch.dtype,
    tied: bool,
    option: str,
) -> None:
    base = make_base(family, dtype, tied)
    adapter = make_adapter(base, **OPTIONS[option])
    plan = plan_of(base, adapter)
    records = merge_all(plan, tmp_path / "merged")
    exact, before, ours = merged_by_peft(base, adapter), load_all(base), load_all(tmp_path / "merged")
    operands = operands_of(plan, base, adapter)
    edited = {t["name"] for shard in plan["shards"] for t in shard["tensors"] if t["edits"]}
    assert ours.keys() == before.keys()
    assert edited
    for name, tensor in ours.items():
        if name in edited:
            assert tensor.dtype == (torch.float32 if dtype == torch.float32 else torch.float16)
            assert not torch.equal(tensor.to(torch.float64), before[name].to(torch.float64))
            assert_rounded_once(tensor, exact[name], name, operands[name])
        else:
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])
    used = [
        e[key]
        for s in plan["shards"]
        for t in s["tensors"]
        for e in t["edits"]
        for key in ("a", "b", "source")
        if key in e
    ]
    assert sorted(used) == sorted(load_file(adapter / "adapter_model.safetensors"))
    assert {name for record in records for name in record["tensors"]} == edited


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_chosen_dtype_reaches_every_tensor(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, dtype: str, stored: torch.dtype
) -> None:
    base = make_base("llama", torch.bfloat16, False)
    adapter = make_adapter(base, modules_to_save=["lm_head"])
    plan = plan_of(base, adapter, dtype=dtype)
    records = merge_all(plan, tmp_path / "merged")
    exact, operands = merged_by_peft(base, adapter), operands_of(plan, base, adapter)
    for name, tensor in load_all(tmp_path / "merged").items():
        assert tensor.dtype == stored
        assert_rounded_once(tensor, exact[name], name, operands[name])
    survivals = [t["survival"] for record in records for t in record["tensors"].values()]
    assert all(abs(s - 1) < 0.2 for s in survivals)


def test_survival_tells_what_bfloat16_rounds_away(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    adapter = make_adapter(base, size=3e-5)
    mean = {}
    for dtype in ("float16", "bfloat16", "float32"):
        records = merge_all(plan_of(base, adapter, dtype=dtype), tmp_path / dtype)
        values = [t["survival"] for record in records for t in record["tensors"].values()]
        mean[dtype] = sum(values) / len(values)
    assert mean["float32"] == pytest.approx(1, abs=1e-3)
    assert mean["bfloat16"] < 0.7 < mean["float16"]


def test_without_adapter_the_bytes_of_the_base(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    merge_all(plan_of(base), tmp_path / "merged")
    before, after = load_all(base), load_all(tmp_path / "merged")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_true_record(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base()
    adapter = make_adapter(base)
    plan = plan_of(base, adapter)
    records = merge_all(plan, tmp_path / "merged")
    assert records == merge_all(plan, tmp_path / "again")
    for shard, record in zip(plan["shards"], records, strict=True):
        assert sha256_of(tmp_path / "merged" / shard["file"]) == record["output"]["sha256"]
        assert sha256_of(tmp_path / "again" / shard["file"]) == record["output"]["sha256"]
        assert record["base"]["sha256"] == sha256_of(Path(shard["base"]))
        assert record["adapters"][0]["sha256"] == sha256_of(adapter / "adapter_model.safetensors")


def test_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    """With three threads and more torch has several of its own: one reads, one writes."""
    plan = large_checkpoint(tmp_path, tensors=1, rows=1024, random=True)
    threads_before = torch.get_num_threads()
    digests = set()
    try:
        for threads in (1, 2, 4, 9):
            record = merge_shard(plan, plan["shards"][0]["file"], tmp_path / f"{threads}.safetensors", threads)
            digests.add(record["output"]["sha256"])
            assert torch.get_num_threads() == max(1, threads - 2)
    finally:
        torch.set_num_threads(threads_before)
    assert len(digests) == 1


def test_narrow_bands_are_as_exact_as_whole_tensors(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base("llama", torch.float16, False)
    adapter = make_adapter(base, modules_to_save=["lm_head"])
    monkeypatch.setattr("ollamake.merge_arithmetic.BAND_ELEMENTS", 200)
    plan = plan_of(base, adapter)
    merge_all(plan, tmp_path / "merged")
    exact, operands = merged_by_peft(base, adapter), operands_of(plan, base, adapter)
    for name, tensor in load_all(tmp_path / "merged").items():
        assert_rounded_once(tensor, exact[name], name, operands[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_values_that_are_no_numbers_stop_the_merge_by_name(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, bad: float, where: str
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    file = adapter / "adapter_model.safetensors" if where == "adapter" else _shard_of(base, "layers.1.mlp.up_proj")
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    tensors[name].view(-1)[3] = bad
    save_file(tensors, file, metadata={"format": "pt"})
    plan = plan_of(base, adapter)
    with pytest.raises(OllamakeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has .* not numbers"):
        merge_all(plan, tmp_path / "merged")


def test_overflow_of_float16_names_the_remedy(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base()
    file = _shard_of(base, "layers.0.self_attn.q_proj.weight")
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = 70000.0
    save_file(tensors, file, metadata={"format": "pt"})
    adapter = make_adapter(base)
    with pytest.raises(OllamakeError, match=r"q_proj\.weight has values up to 70144.*dtype: bfloat16"):
        merge_all(plan_of(base, adapter), tmp_path / "merged")
    merge_all(plan_of(base, adapter, dtype="bfloat16"), tmp_path / "bfloat16")


def test_a_failure_in_the_middle_leaves_nothing(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    plan = plan_of(base, make_adapter(base))
    monkeypatch.setattr(shard_stream.TensorEdit, "edited", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    shard = next(s for s in plan["shards"] if any(t["edits"] for t in s["tensors"]))
    with pytest.raises(KeyboardInterrupt):
        merge_shard(plan, shard["file"], tmp_path / "merged" / shard["file"], 1)
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_file_with_other_bytes_than_those_that_are_known_is_not_merged(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base()
    plan = plan_of(base, make_adapter(base))
    shard, output = plan["shards"][0], tmp_path / "merged" / plan["shards"][0]["file"]
    for path in (shard["base"], plan["adapters"][0]["path"]):
        known = {path: sha256_of(Path(path))}
        merge_shard(plan, shard["file"], output, 1, known)
        output.unlink()
        with pytest.raises(
            OllamakeError, match=rf"{path}: it has other bytes than when it was read before.*touch {path}"
        ):
            merge_shard(plan, shard["file"], output, 1, {path: "0" * 64})
        assert list(output.parent.iterdir()) == []


def test_a_base_that_changed_since_it_was_planned(make_base: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(make_base())
    other = copy.deepcopy(plan)
    other["shards"][0]["tensors"][0]["shape"] = [1, 2]
    with pytest.raises(OllamakeError, match="other tensors than when the merge was planned"):
        merge_all(other, tmp_path / "merged")
    with pytest.raises(OllamakeError, match=r"the merge plan has no shard x; it has \['model-00001-of-"):
        merge_shard(plan, "x", tmp_path / "merged/x", 1)


def test_no_room_is_said_before_anything_is_written(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollamake.free_disk.free_bytes", lambda _: 1000)
    with pytest.raises(OllamakeError, match=r"not enough disk .* 0\.00 GB free"):
        merge_all(plan_of(make_base()), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def large_checkpoint(
    folder: Path, tensors: int, rows: int, columns: int = 16384, random: bool = False
) -> dict[str, Any]:
    """Save a base of equal matrices with a LoRA adapter on each, and return the plan of its merge."""
    fill = torch.randn if random else torch.ones
    rank, base, adapter = 8, folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(tensors)]
    matrix = (fill(rows, columns) * 0.01).to(torch.bfloat16)
    save_file({f"{name}.weight": matrix.clone() for name in names}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    halves = {f"base_model.model.{name}.lora_A.weight": fill(rank, columns) for name in names}
    halves |= {f"base_model.model.{name}.lora_B.weight": fill(rows, rank) for name in names}
    save_file(halves, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8}))
    plan = plan_of(base, adapter)
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def merge_command(folder: Path, output: Path) -> list[str]:
    return [
        sys.executable, str(SCRIPTS / "merge_shard.py"), "--plan", str(folder / "plan.json"),
        "--shard", "model-00001-of-00001.safetensors", "--output", str(output), "--record", str(output.with_suffix(".json")),
    ]  # fmt: skip


def test_a_checkpoint_larger_than_the_memory_that_is_used(tmp_path: Path) -> None:
    """1.3 GB are merged in less than 1 GiB of resident memory, most of which is torch itself."""
    large_checkpoint(tmp_path, tensors=3, rows=12800)
    size = (tmp_path / "base/model.safetensors").stat().st_size
    program = "import sys, merge_shard; merge_shard.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", program, *merge_command(tmp_path, tmp_path / "merged.safetensors")[2:]]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )
    peak = next(int(line.split()[1]) * 1024 for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert peak < 2**30 < size, f"{peak / 1e6:.0f} MB"


def test_killed_at_any_moment_nothing_half_made_is_left_under_a_final_name(tmp_path: Path) -> None:
    large_checkpoint(tmp_path, tensors=2, rows=3000)
    expected = tmp_path / "expected.safetensors"
    subprocess.run(merge_command(tmp_path, expected), check=True, capture_output=True)
    record = json.loads(expected.with_suffix(".json").read_text())
    output = tmp_path / "merged" / "model.safetensors"
    output.parent.mkdir()
    began = 0
    for moment in range(8):
        process = subprocess.Popen(merge_command(tmp_path, output), stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(output.parent.glob(".*.tmp")):
            time.sleep(0.001)
        began += process.poll() is None
        time.sleep(0.01 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            assert sha256_of(output) == record["output"]["sha256"]
            output.unlink()
    assert began, "no merge was caught at work"
    subprocess.run(merge_command(tmp_path, output), check=True, capture_output=True)
    assert sha256_of(output) == record["output"]["sha256"]
    assert sorted(file.name for file in output.parent.iterdir()) == ["model.json", "model.safetensors"]


def _shard_of(folder: Path, part: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return folder / next(file for name, file in index.items() if part in name)
