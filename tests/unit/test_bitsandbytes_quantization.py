"""bitsandbytes checkpoints against what transformers saves of the same merged weights when it quantizes them itself."""

from __future__ import annotations

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
from merging import load_all, merge_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, SHAPE, logits_of, random_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import plan_bitsandbytes
import quantize_bitsandbytes
import write_bitsandbytes_files
from ollamake.bitsandbytes_configuration import PRECISIONS, BitsAndBytes, all_settings, weights_settings
from ollamake.bitsandbytes_layout import PlacedTensors
from ollamake.bitsandbytes_modules import treat_checkpoint
from ollamake.bitsandbytes_needs import checkpoint_bytes
from ollamake.bitsandbytes_needs import quantize_bitsandbytes as needs_of_shard
from ollamake.bitsandbytes_quantization import BAND
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of

WHOLE_BLOCKS = {"intermediate_size": 128}
"""bitsandbytes multiplies rows of whole blocks of 64 weights only, where the processor has AVX512-BF16."""
KEY = "models.small.bitsandbytes"
DEFAULT = BitsAndBytes()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """torch sums in another order with more threads, so transformers' own checkpoints differ from each other by that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def merged(base: Path, folder: Path, **options: Any) -> Path:
    """Merge nothing into a base; return the folder of the merged checkpoint, its plan beside it."""
    plan = merge_checkpoint(base, (), folder / "merged", **options)
    (folder / "merge_plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder / "merged"


def planned(base: Path, work: Path, precision: str, asked: BitsAndBytes = DEFAULT) -> Path:
    """Plan a checkpoint by the script of its rule; return the plan."""
    layers = work / f"{precision}.plan.json"
    plan_bitsandbytes.main(
        ["--plan", str(work / "merge_plan.json"), "--base", str(base), "--key", KEY, "--settings",
         json.dumps(weights_settings(asked, precision)), "--output", str(layers)]
    )  # fmt: skip
    return layers


def quantized(base: Path, work: Path, precision: str, asked: BitsAndBytes = DEFAULT) -> Path:
    """Quantize a merged checkpoint by the scripts of the rules; return the folder of the result."""
    output = work / "bitsandbytes" / precision
    records = []
    shared = ["--precision", precision, "--layers", str(planned(base, work, precision, asked))]
    for shard in sorted((work / "merged").glob("*.safetensors")):
        merge_record = work / f"{shard.stem}.merge.json"
        merge_record.write_text(json.dumps({"output": {"file": shard.name, "sha256": sha256_of(shard)}}))
        records.append(str(work / f"{precision}-{shard.stem}.json"))
        quantize_bitsandbytes.main(
            [*shared, "--shard", str(shard), "--merge-record", str(merge_record), "--spec", "spec",
             "--output", str(output / shard.name), "--record", records[-1]]
        )  # fmt: skip
    write_bitsandbytes_files.main(
        [*shared, "--settings", json.dumps(all_settings(asked, precision)), "--manifest", str(work / "merged/model_files.json"),
         "--records", *records, "--output", str(output), "--record", str(output.with_suffix(".json"))]
    )  # fmt: skip
    return output


def by_transformers(folder: Path, output: Path, settings: dict[str, Any]) -> PreTrainedModel:
    """Load a checkpoint quantized by transformers itself, and save it."""
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings))
    model.save_pretrained(output)
    return model.eval()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Every name, dtype, shape and byte."""
    mine, yours = load_all(ours), load_all(theirs)
    assert mine.keys() == yours.keys()
    for name, tensor in yours.items():
        assert (mine[name].dtype, mine[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(mine[name]), bits(tensor)), name


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_same_bytes_and_logits_as_transformers(
    make_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    family: str,
    dtype: torch.dtype,
    tied: bool,
    precision: str,
) -> None:
    monkeypatch.setitem(FAMILIES, family, (FAMILIES[family][0], SHAPE | WHOLE_BLOCKS))
    base = make_base(family, dtype, tied)
    folder = merged(base, tmp_path)
    ours = quantized(base, tmp_path, precision)
    settings = all_settings(DEFAULT, precision)
    reference = by_transformers(folder, tmp_path / "theirs", settings)
    assert_same_tensors(ours, tmp_path / "theirs")
    config = json.loads((ours / "config.json").read_text(encoding="utf-8"))
    theirs = json.loads((tmp_path / "theirs/config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"] == theirs["quantization_config"]
    loaded = AutoModelForCausalLM.from_pretrained(ours)
    layer = loaded.model.layers[0].mlp.down_proj
    assert type(layer).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[precision]
    assert loaded.dtype == dtype
    assert torch.equal(logits_of(loaded), logits_of(reference))
    assert not torch.equal(logits_of(loaded), logits_of(AutoModelForCausalLM.from_pretrained(folder)))


@pytest.mark.parametrize(
    "family",
    ["mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3", "qwen3-next", "gemma3", "phi3", "gpt2", "gptj", "biogpt"],
)
def test_other_families(make_base: Callable[..., Path], tmp_path: Path, family: str, precision: str) -> None:
    """Experts, fused projections, Conv1D, biases of the head, heads of another name.

    Their rows are no whole blocks of NF4, which bitsandbytes does not multiply on every processor: logits of the other only.
    """
    base = make_base(family, torch.bfloat16, False)
    folder = merged(base, tmp_path)
    ours = quantized(base, tmp_path, precision)
    reference = by_transformers(folder, tmp_path / "theirs", all_settings(DEFAULT, precision))
    assert_same_tensors(ours, tmp_path / "theirs")
    if precision == "int8" and family != "deepseek-v3":  # whose attention cannot run in so small a shape
        assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(ours)), logits_of(reference))
    warnings = json.loads(ours.with_suffix(".json").read_text(encoding="utf-8"))["warnings"]
    assert bool(warnings) == ("num_experts_per_tok" in FAMILIES[family][1])


def test_matrices_of_several_bands(tmp_path: Path, precision: str) -> None:
    """Rows that fill no band, a last block of NF4 that is not full, and more maxima than one nested block."""
    torch.manual_seed(3)
    shape = {"hidden_size": 264, "intermediate_size": 4999, "num_attention_heads": 4, "num_key_value_heads": 4}
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1, vocab_size=96, head_dim=66)).to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base)
    count = model.model.layers[0].mlp.down_proj.weight.numel()
    assert count % 64
    assert count > BAND
    folder = merged(base, tmp_path)
    ours = quantized(base, tmp_path, precision)
    by_transformers(folder, tmp_path / "theirs", all_settings(DEFAULT, precision))
    assert_same_tensors(ours, tmp_path / "theirs")


def test_a_merge_of_two_dtypes_is_stored_as_it_is_loaded(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path, precision: str
) -> None:
    """merge.dtype: auto leaves bfloat16 beside float16; transformers loads all of it in that of config.json."""
    base = make_base("qwen2", torch.bfloat16, True)
    plan = merge_checkpoint(base, [make_adapter(base)], tmp_path / "merged")
    (tmp_path / "merge_plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert {tensor.dtype for tensor in load_all(tmp_path / "merged").values()} == {torch.float16, torch.bfloat16}
    ours = quantized(base, tmp_path, precision)
    by_transformers(tmp_path / "merged", tmp_path / "theirs", all_settings(DEFAULT, precision))
    assert_same_tensors(ours, tmp_path / "theirs")


def test_skipped_modules(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, False)
    folder = merged(base, tmp_path)
    asked = BitsAndBytes(("int8",), ("lm_head", "down_proj", "model.layers.0"))
    ours = quantized(base, tmp_path, "int8", asked)
    by_transformers(folder, tmp_path / "theirs", all_settings(asked, "int8"))
    assert_same_tensors(ours, tmp_path / "theirs")
    record = json.loads(ours.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["quantization_config"]["llm_int8_skip_modules"] == ["lm_head", "down_proj", "model.layers.0"]
    assert record["quantized"] == 6
    assert "model.layers.0.self_attn.q_proj" in record["skipped_modules"]
    assert "model.layers.1.self_attn.q_proj" not in record["skipped_modules"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "dwn_proj",
            r"bitsandbytes\.skip_modules: 'dwn_proj' names no linear layer of the model\. Did you mean down_proj",
        ),
        ("xyz", "Did you mean down_proj, gate_proj, k_proj, lm_head"),
        ("model.layers.7", "'model.layers.7' names no linear layer"),
        ("(", r"skip_modules: '\(' is not a name, nor a regular expression"),
    ],
)
def test_a_skipped_module_that_is_none(make_base: Callable[..., Path], tmp_path: Path, entry: str, said: str) -> None:
    base = make_base("llama", torch.bfloat16, False)
    merged(base, tmp_path)
    with pytest.raises(OllamakeError, match=said):
        planned(base, tmp_path, "int8", BitsAndBytes(("int8",), ("lm_head", entry)))
    assert not (tmp_path / "int8.plan.json").exists()


def test_a_merged_shard_that_is_not_kept(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, False)
    folder = merged(base, tmp_path)
    layers = planned(base, tmp_path, "nf4")
    (folder / "model-00001-of-00001.safetensors").unlink(missing_ok=True)
    with pytest.raises(OllamakeError, match=r"is not here\. With keep\.merged: false"):
        quantize_bitsandbytes.main(
            ["--precision", "nf4", "--layers", str(layers), "--shard", str(folder / "model-00001-of-00001.safetensors"),
             "--merge-record", "none", "--output", str(tmp_path / "out"), "--record", str(tmp_path / "record")]
        )  # fmt: skip


def test_a_head_that_is_not_skipped(make_base: Callable[..., Path], tmp_path: Path) -> None:
    """Untied it is quantized, as transformers does; tied it cannot be."""
    base = make_base("llama", torch.bfloat16, False)
    folder = merged(base, tmp_path / "untied")
    asked = BitsAndBytes(("int8",), ("down_proj",))
    ours = quantized(base, tmp_path / "untied", "int8", asked)
    by_transformers(folder, tmp_path / "theirs", all_settings(asked, "int8"))
    assert_same_tensors(ours, tmp_path / "theirs")
    assert load_all(ours)["lm_head.weight"].dtype == torch.int8
    base = make_base("llama", torch.bfloat16, True)
    merged(base, tmp_path / "tied")
    with pytest.raises(OllamakeError, match=r"bitsandbytes\.skip_modules: lm_head\.weight is tied .* Add lm_head"):
        quantized(base, tmp_path / "tied", "int8", asked)


def test_the_record_and_the_index(make_base: Callable[..., Path], tmp_path: Path, precision: str) -> None:
    base = make_base("qwen2", torch.bfloat16, True)
    folder = merged(base, tmp_path)
    ours = quantized(base, tmp_path, precision)
    record = json.loads(ours.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["files"].keys() == {file.name for file in ours.iterdir()}
    for name, entry in record["files"].items():
        assert (entry["size"], entry["sha256"]) == ((ours / name).stat().st_size, sha256_of(ours / name))
    tensors = load_all(ours)
    assert record["bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert record["merged_bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in load_all(folder).values())
    index = json.loads((ours / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == record["bytes"]
    for name, file in index["weight_map"].items():
        with safe_open(ours / file, "pt") as shard:
            assert name in set(shard.keys())
    assert index["weight_map"].keys() == tensors.keys()
    assert record["versions"]["bitsandbytes"] == "0.50.2"
    assert record["quantized"] == 14
    assert record["skipped_modules"] == ["lm_head"]
    assert record["parameters"] == sum(tensor.numel() for tensor in load_all(folder).values())
    assert record["bits_per_weight"] == round(8 * record["bytes"] / record["parameters"], 3)
    plan = json.loads((tmp_path / "merge_plan.json").read_text(encoding="utf-8"))
    # Beside the weights bitsandbytes keeps a text of some 150 bytes for each matrix.
    assert abs(checkpoint_bytes(plan, precision) - 10_000_000 - record["bytes"]) < 14 * 300
    shard_records = [json.loads(file.read_text()) for file in tmp_path.glob(f"{precision}-*.json")]
    for one in shard_records:
        assert one["merged"]["sha256"] == sha256_of(folder / one["file"])
        needs = needs_of_shard(plan, one["file"], precision)
        assert needs.disk_mb == 1
        assert one["spec"] == "spec"


def test_what_an_earlier_build_left_goes(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, True)
    merged(base, tmp_path)
    ours = tmp_path / "bitsandbytes/nf4"
    ours.mkdir(parents=True)
    for name in ("model-00001-of-00099.safetensors", "chat_template.jinja", "notes.txt"):
        (ours / name).write_text("old", encoding="utf-8")
    quantized(base, tmp_path, "nf4")
    assert not (ours / "model-00001-of-00099.safetensors").exists()
    assert not (ours / "chat_template.jinja").exists()
    assert (ours / "notes.txt").exists()


@pytest.mark.parametrize("offset", [8, 4, 2, 1])
def test_tensors_are_aligned_whatever_is_known_last(tmp_path: Path, offset: int) -> None:
    """A reader that maps the file finds each element at a multiple of its size; safetensors finds no hole."""
    entries = [("a", "U8", (offset,)), ("b", "BF16", (3,)), ("c", "F32", (5,)), ("d", "I8", (7,))]
    path = tmp_path / "placed.safetensors"
    with path.open("wb") as file:
        placed = PlacedTensors(file, entries, ["text"])
        for name, size in (("d", 7), ("a", offset), ("c", 20), ("b", 6)):
            placed.write(name, 0, memoryview(name.encode() * size))
        placed.finish({"text": b"known last"})
    loaded = load_file(path)
    assert bytes(loaded["text"].numpy()) == b"known last"
    assert {name: bytes(bits(loaded[name]).numpy()) for name in "abcd"} == {
        "a": b"a" * offset, "b": b"b" * 6, "c": b"c" * 20, "d": b"d" * 7,
    }  # fmt: skip
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert (start + header["c"]["data_offsets"][0]) % 4 == 0
    assert (start + header["b"]["data_offsets"][0]) % 2 == 0
    assert header["__metadata__"] == {"format": "pt"}


def test_a_tensor_that_was_not_written_whole_is_no_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        placed = PlacedTensors(file, [("a", "F32", (2,))], [])
        placed.write("a", 0, memoryview(b"four"))
        with pytest.raises(ValueError, match=r"not written whole: \['a'\]"):
            placed.finish({})
        with pytest.raises(ValueError, match="a has 8 bytes"):
            placed.write("a", 6, memoryview(b"four"))


def change(folder: Path, name: str, edit: Callable[[torch.Tensor], Any]) -> None:
    """Edit one tensor of a checkpoint in place."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            edit(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    make_base: Callable[..., Path], tmp_path: Path, precision: str, value: float
) -> None:
    base = make_base("llama", torch.bfloat16, False)
    folder = merged(base, tmp_path)
    change(folder, "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor[3].fill_(value))
    with pytest.raises(OllamakeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinity"):
        quantized(base, tmp_path, precision)
    assert not list((tmp_path / f"bitsandbytes/{precision}").glob(".*"))


def test_weights_that_are_too_large_for_llm_int8(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, False)
    folder = merged(base, tmp_path)
    change(folder, "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor[3, 3].fill_(70000.0))
    with pytest.raises(OllamakeError, match=r"up_proj\.weight has values beyond 65504"):
        quantized(base, tmp_path, "int8")
    assert quantized(base, tmp_path, "nf4").with_suffix(".json").exists()


def test_models_that_cannot_be_quantized() -> None:
    settings = all_settings(DEFAULT, "nf4")
    with pytest.raises(OllamakeError, match="has no causal language model for model_type 'made-up'"):
        treat_checkpoint({"model_type": "made-up", "dtype": "bfloat16"}, [], settings, KEY)
    model = random_model("falcon", torch.bfloat16, True)  # its linear layers are a class of its own
    with pytest.raises(OllamakeError, match=r"models\.small\.bitsandbytes: bitsandbytes would quantize nothing"):
        treat_checkpoint(model.config.to_dict() | {"dtype": "bfloat16"}, list(model.state_dict()), settings, KEY)


def test_a_changed_file_of_the_merge(make_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_base("llama", torch.bfloat16, True)
    folder = merged(base, tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(OllamakeError, match=r"config\.json missing or changed since"):
        quantized(base, tmp_path, "nf4")


def large_shard(folder: Path, layers: int, width: int) -> None:
    """Save a Llama of many layers as one merged shard, and its plan; all matrices are parts of one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=8, vocab_size=64
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    values = torch.randn(width, width, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    tensors = {name: values[tuple(map(slice, tensor.shape))].clone() if tensor.dim() == 2 else values[0].clone()
               for name, tensor in model.state_dict().items()}  # fmt: skip
    (folder / "base").mkdir()
    save_file(tensors, folder / "base/model.safetensors", metadata={"format": "pt"})
    config.dtype = torch.bfloat16
    config.save_pretrained(folder / "base")
    merged(folder / "base", folder)
    (shard,) = (folder / "merged").glob("*.safetensors")
    record = {"output": {"sha256": sha256_of(shard)}}
    (folder / "merge.json").write_text(json.dumps(record), encoding="utf-8")


def command(folder: Path, precision: str) -> list[str]:
    """Return the command that quantizes the only shard of a folder."""
    (shard,) = (folder / "merged").glob("*.safetensors")
    layers = planned(folder / "base", folder, precision)
    options = {"precision": precision, "layers": layers, "shard": shard, "merge-record": folder / "merge.json",
               "output": folder / "out.safetensors", "record": folder / "out.json"}  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, quantize_bitsandbytes.__file__, *arguments]


PEAK = (
    "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]);"
    "import ollamake.bitsandbytes_quantization as q, torch;"
    "q.quantize_int8('w.weight', [torch.ones(4, 64)], lambda *_: None);"
    "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
    "import quantize_bitsandbytes; quantize_bitsandbytes.main(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
)


def test_memory_does_not_grow_with_the_shard(tmp_path: Path, precision: str) -> None:
    """A shard of 340 MB takes little more than bands and the mapped window; its matrices have 2 MB each."""
    large_shard(tmp_path, 24, 1008)
    (shard,) = (tmp_path / "merged").glob("*.safetensors")
    assert shard.stat().st_size > 330e6
    _, *arguments = command(tmp_path, precision)
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    growth = int(done.stdout.split()[-1]) * 1024
    print(growth)
    assert growth < 150e6
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["sha256"] == sha256_of(
        tmp_path / "out.safetensors"
    )


def test_killed_it_leaves_no_shard(tmp_path: Path) -> None:
    large_shard(tmp_path, 12, 1008)
    output = tmp_path / "out.safetensors"
    process = subprocess.Popen(command(tmp_path, "nf4"), stderr=subprocess.DEVNULL)
    while not (begun := list(tmp_path.glob(".out.safetensors.*.tmp"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert begun
    assert not output.exists()
    assert not (tmp_path / "out.json").exists()
    subprocess.run(command(tmp_path, "nf4"), stderr=subprocess.DEVNULL, check=True)
    assert output.exists()
    assert not list(tmp_path.glob(".out*"))
