"""Bases that cannot be built from: each is refused in one message that names the folder, the file or the tensor."""

from __future__ import annotations

import json

import pytest
import torch
from bad_inputs import Cases, Edit, change_json, refused, remove, set_model, write
from campaigns import one_in
from dag_build import Build
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.faults

CONFIG, INDEX, TOKENIZER = "base/config.json", "base/model.safetensors.index.json", "base/tokenizer.json"
SHARD = "base/model-00002-of-00003.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"


def change_index(edit: object) -> Edit:
    """Change tensor -> file of the index."""

    def change(build: Build) -> None:
        index = json.loads((build.folder / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = edit(index["weight_map"])  # type: ignore[operator]
        (build.folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    return change


def tensors(edit: object) -> Edit:
    """Change the tensors of a shard, given as name -> tensor."""

    def change(build: Build) -> None:
        file = build.folder / SHARD
        save_file({name: one.contiguous() for name, one in edit(load_file(file)).items()}, file)  # type: ignore[operator]

    return change


def truncated(build: Build) -> None:
    file = build.folder / SHARD
    file.write_bytes(file.read_bytes()[:-100])


def only_gguf(build: Build) -> None:
    for file in (build.folder / "base").glob("model*"):
        file.unlink()
    (build.folder / "base/model-q4_k_m.gguf").write_bytes(b"GGUF")


CASES: Cases = {
    "folder missing": (set_model(base="nowhere"), ["models.small.base", "'nowhere' does not exist"]),
    "a file for the folder": (set_model(base=CONFIG), ["models.small.base", "is a file, not a folder"]),
    "the adapter for the base": (set_model(base="adapter"), ["models.small.base", "'adapter' has no config.json"]),
    "size below zero": (change_json(CONFIG, hidden_size=-1), [CONFIG, "hidden_size is -1; expected a whole number"]),
    "architectures in a text": (change_json(CONFIG, architectures="Qwen2"), [CONFIG, "expected a list of names"]),
    "no config": (remove(CONFIG), ["models.small.base", "'base' has no config.json"]),
    "config of no JSON": (write(CONFIG, "{model_type: qwen2}"), [CONFIG, "cannot be read as JSON"]),
    "config of a list": (write(CONFIG, "[]"), [CONFIG, "expected a JSON object"]),
    "config nested without end": (write(CONFIG, "[" * 200_000), [CONFIG, "cannot be read as JSON"]),
    "layers in words": (change_json(CONFIG, num_hidden_layers="two"), [CONFIG, "num_hidden_layers is 'two'; expected"]),
    "no model type": (change_json(CONFIG, model_type=None, architectures=None), [CONFIG, "neither architectures nor model_type"]),
    "quantized by another method": (
        change_json(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
        ["gptq"],
    ),
    "only a GGUF": (only_gguf, ["models.small.base", "It has model-q4_k_m.gguf, which cannot be merged"]),
    "shard missing": (remove(SHARD), ["model.safetensors.index.json names 3 shards, of which 1 are not there"]),
    "shard cut short": (truncated, ["model-00002-of-00003.safetensors is truncated", "bytes"]),
    "shard that was not fetched": (write(SHARD, POINTER), [SHARD, "a pointer of Git LFS", "git lfs pull"]),
    "shard of zeros": (write(SHARD, bytes(100_000)), [SHARD, "its header is not JSON"]),
    "index of no JSON": (write(INDEX, "<!DOCTYPE html>"), [INDEX, "not an index of safetensors files", "Fetch the file again"]),
    "index nested without end": (write(INDEX, "[" * 200_000), [INDEX, "not an index of safetensors files"]),
    "index of another folder": (
        change_index(lambda files: dict.fromkeys(files, "../secret.safetensors")),
        [INDEX, "names files outside its folder"],
    ),
    "index of a number": (change_index(lambda files: dict.fromkeys(files, 5)), [INDEX, "names files outside its folder: [5]"]),
    "tensor that the index does not know": (
        tensors(lambda all: all | {"model.more": torch.zeros(4)}),
        ["model.more"],
    ),
    "tensor that is not in its shard": (
        tensors(lambda all: dict(list(all.items())[1:])),
        ["model-00002-of-00003.safetensors"],
    ),
    "tensor of another shape": (
        tensors(lambda all: {name: one[..., :7] for name, one in all.items()}),
        ["model-00002-of-00003.safetensors"],
    ),
    "no tokenizer": (remove(TOKENIZER), ["models.small.base", "'base' has no tokenizer"]),
    "tokenizer of no JSON": (write(TOKENIZER, "{"), [TOKENIZER, "JSON"]),
    "tokenizer of another model": (change_json(CONFIG, vocab_size=100), [CONFIG, "vocab_size"]),
}  # fmt: skip


@pytest.mark.parametrize("case", one_in(6, CASES))
def test_refused(fresh: Build, case: str) -> None:
    edit, words = CASES[case]
    edit(fresh)
    fresh.write_config()
    refused(fresh, words)
