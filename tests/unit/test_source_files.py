"""A folder that is no base or adapter is refused by name, with what to do."""

import json
from pathlib import Path

import pytest

from ollamake.errors import OllamakeError
from ollamake.source_files import merges_through_peft, reads_across_shards, source_files


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_single_file_base(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "config.json", "model.safetensors", "tokenizer.json", "README.md")
    weights, small = source_files("base", str(base), "models.m.base")
    assert weights == [f"{base}/model.safetensors"]
    assert small == [f"{base}/config.json", f"{base}/tokenizer.json"]


def test_sharded_base_in_the_order_of_names(tmp_path: Path) -> None:
    names = [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    base = make(tmp_path / "base", "config.json", *names)
    index = {"weight_map": {"c": names[2], "a": names[0], "b": names[1], "d": names[0]}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    weights, small = source_files("base", str(base), "models.m.base")
    assert weights == [f"{base}/{name}" for name in names]
    assert small[-1] == f"{base}/model.safetensors.index.json"


def test_adapter(tmp_path: Path) -> None:
    adapter = make(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "optimizer.pt")
    weights, small = source_files("adapter", str(adapter), "models.m.adapter")
    assert weights == [f"{adapter}/adapter_model.safetensors"]
    assert small == [f"{adapter}/adapter_config.json", f"{adapter}/tokenizer.json"]


@pytest.mark.parametrize(
    ("kind", "names", "index", "words"),
    [
        ("base", None, None, ["models.m.base", "does not exist"]),
        ("base", ["model.safetensors"], None, ["no config.json"]),
        ("base", ["config.json", "model.gguf"], None, ["model.gguf", "save_pretrained"]),
        ("base", ["config.json"], "not json", ["index", "weight_map"]),
        ("base", ["config.json"], '{"weight_map": {"a": "../x.safetensors"}}', ["outside", "../x.safetensors"]),
        ("base", ["config.json"], '{"weight_map": {"a": "gone.safetensors"}}', ["gone.safetensors", "Complete"]),
        ("base", ["config.json"], '{"weight_map": {}}', ["names none"]),
        ("base", ["config.json"], '{"weight_map": {"a": 1}}', ["index"]),
        ("adapter", None, None, ["models.m.adapter", "does not exist"]),
        ("adapter", ["adapter_config.json"], None, ["no adapter_model.safetensors"]),
        ("adapter", ["adapter_model.bin"], None, ["no adapter_config.json"]),
    ],
)
def test_refusals(tmp_path: Path, kind: str, names: list[str] | None, index: str | None, words: list[str]) -> None:
    folder = tmp_path / "folder"
    if names is not None:
        make(folder, *names)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OllamakeError) as caught:
        source_files(kind, str(folder), f"models.m.{kind}")
    for word in words:
        assert word in str(caught.value)


def test_a_checkpoint_below_or_beside_is_named(tmp_path: Path) -> None:
    make(tmp_path / "run" / "checkpoint-500", "adapter_config.json")
    for wrong in (tmp_path / "run", tmp_path / "run" / "checkpoint-50"):
        with pytest.raises(OllamakeError, match="checkpoint-500"):
            source_files("adapter", str(wrong), "models.m.adapter")


@pytest.mark.parametrize(
    ("base", "adapter", "across", "through_peft"),
    [
        ({}, {"peft_type": "LORA"}, False, False),
        ({}, {"peft_type": "LORA", "use_dora": True}, True, False),
        ({}, {"peft_type": "LORA", "init_lora_weights": "pissa"}, True, True),
        ({}, {"peft_type": "LOHA"}, True, True),
        ({"quantization_config": {"quant_method": "fp8"}}, {"peft_type": "LORA"}, True, False),
        ([], {"peft_type": "LORA"}, False, False),
        (None, None, False, False),
    ],
)
def test_what_a_shards_merge_needs(
    tmp_path: Path, base: object, adapter: object, across: bool, through_peft: bool
) -> None:
    files = []
    for name, content in (("config.json", base), ("adapter_config.json", adapter)):
        files.append(str(tmp_path / name))
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert reads_across_shards(*files) == across
    assert merges_through_peft(*files[1:]) == through_peft
