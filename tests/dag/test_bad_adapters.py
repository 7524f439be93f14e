"""Adapters that cannot be merged: each is refused in one message that names the folder, the file or the tensor."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from bad_inputs import Cases, Edit, change_json, each, refused, remove, set_model, write
from campaigns import one_in
from dag_build import Build
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.faults

CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"


class TouchesAFile:
    """A pickle that would run a command as it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch PWNED",)


def tensors(edit: object) -> Edit:
    """Change the adapter's tensors, given as name -> tensor."""

    def change(build: Build) -> None:
        file = build.folder / WEIGHTS
        save_file({name: one.contiguous() for name, one in edit(load_file(file)).items()}, file)  # type: ignore[operator]

    return change


def deeper_base(build: Build) -> None:
    """All shapes fit: the layers that the adapter has are as wide there, but there are more of them."""
    (build.folder / "deeper").mkdir()
    shutil.copy2(build.folder / "base/config.json", build.folder / "deeper")
    change_json("deeper/config.json", num_hidden_layers=12)(build)
    change_json(CONFIG, base_model_name_or_path="deeper")(build)


def add_token(build: Build) -> None:
    tokenizer = json.loads((build.folder / "base/tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 4096, "content": "<|new|>"})
    (build.folder / "adapter/tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def leave_checkpoints(build: Build) -> None:
    for step in (500, 1000):
        shutil.copytree(build.folder / "adapter", build.folder / f"run/checkpoint-{step}")
    build.model()["adapter"] = "run"


def leave_the_optimizer(build: Build) -> None:
    leave_checkpoints(build)
    last = build.folder / "run/checkpoint-1000"
    (last / "adapter_model.safetensors").rename(last / "optimizer.pt")
    build.model()["adapter"] = "run/checkpoint-1000"


def pickled(build: Build) -> None:
    (build.folder / WEIGHTS).unlink()
    (build.folder / "adapter/adapter_model.bin").write_bytes(pickle.dumps(TouchesAFile()))


def truncated(build: Build) -> None:
    file = build.folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


CASES: Cases = {
    "folder missing": (
        set_model(adapter="adaptor"),
        ["models.small.adapter", "'adaptor' does not exist", "Adapters nearby: adapter"],
    ),
    "a file for the folder": (set_model(adapter=CONFIG), ["models.small.adapter", "is a file, not a folder"]),
    "the base for the adapter": (set_model(adapter="base"), ["models.small.adapter", "'base' has no adapter_config.json"]),
    "no weights": (remove(WEIGHTS), ["models.small.adapter", "has no adapter_model.safetensors or adapter_model.bin"]),
    "training that did not end": (
        leave_checkpoints,
        ["models.small.adapter", "checkpoints up to checkpoint-1000", "The last whole one is run/checkpoint-1000"],
    ),
    "an optimizer without its adapter": (
        leave_the_optimizer,
        ["models.small.adapter", "state of a training (optimizer.pt)", "A whole one nearby is run/checkpoint-500"],
    ),
    "for another base": (
        tensors(lambda all: {name: one[:, :64] for name, one in all.items()}),
        ["does not fit the base", "the base has"],
    ),
    "of another model": (
        deeper_base,
        [
            "models.small.base: base is another model",
            "adapter/adapter_config.json (models.small.adapter) names 'deeper'",
            "num_hidden_layers: 2 in models.small.base, 12 in what the adapter names",
        ],
    ),
    "tokens without rows": (add_token, ["the tokenizer of the adapter adapter has 1 tokens", "'<|new|>'", "4096 rows"]),
    "of another kind": (change_json(CONFIG, peft_type="PREFIX_TUNING"), ["peft_type PREFIX_TUNING", "nothing to merge"]),
    "of no kind": (change_json(CONFIG, peft_type=None), [CONFIG, "peft_type"]),
    "a number for its kind": (change_json(CONFIG, peft_type=7), [CONFIG, "peft_type"]),
    "option not supported": (change_json(CONFIG, layer_replication=[[0, 1]]), ["layer_replication", "deeper model"]),
    "option not known": (change_json(CONFIG, lora_gamma=3), [CONFIG, "lora_gamma"]),
    "config of no JSON": (write(CONFIG, "{r: 4}"), [CONFIG, "cannot be read as JSON"]),
    "config of a list": (write(CONFIG, "[]"), [CONFIG, "expected a JSON object"]),
    "config nested without end": (write(CONFIG, "[" * 200_000), [CONFIG, "cannot be read as JSON"]),
    "config that is not UTF-8": (write(CONFIG, "{\"r\": \"é\"}".encode("latin-1")), [CONFIG, "cannot be read as JSON"]),
    "rank in words": (change_json(CONFIG, r="four"), [CONFIG, "r", "'four'"]),
    "rank of another checkpoint": (change_json(CONFIG, r=64), ["have rank 4, adapter_config.json says 64", "same checkpoint"]),
    "alpha in words": (change_json(CONFIG, lora_alpha="much"), [CONFIG, "lora_alpha", "'much'"]),
    "ranks in a list": (change_json(CONFIG, rank_pattern=[4]), [CONFIG, "rank_pattern", "[4]"]),
    "pattern that is none": (change_json(CONFIG, rank_pattern={"(": 4}), [CONFIG, "'('", "regular expression"]),
    "modules in a number": (change_json(CONFIG, target_modules=5), [CONFIG, "target_modules", "5"]),
    "weights cut short": (truncated, [WEIGHTS, "truncated", "bytes"]),
    "weights that were not fetched": (write(WEIGHTS, POINTER), [WEIGHTS, "a pointer of Git LFS", "git lfs pull"]),
    "weights of a web page": (write(WEIGHTS, "<!DOCTYPE html><title>404</title>"), [WEIGHTS, "a web page", "Fetch"]),
    "no tensors": (tensors(lambda all: {}), [WEIGHTS, "no tensor"]),
    "half of a pair": (
        tensors(lambda all: {name: one for name, one in all.items() if "lora_B" not in name}),
        ["does not fit the base", "has lora_A without its other half"],
    ),
    "whole numbers": (
        tensors(lambda all: {name: one.to(torch.int64) for name, one in all.items()}),
        ["does not fit the base", "dtypes I64 and I64; expected floating point"],
    ),
    "layers that the base does not have": (
        tensors(lambda all: {name.replace("layers.1.", "layers.7."): one for name, one in all.items()}),
        ["does not fit the base", "layers.7."],
    ),
    "a pickle that runs something": (pickled, ["adapter/adapter_model.bin"]),
    "weight of zero": (
        each(set_model(adapters=[{"path": "adapter", "weight": 0}]), lambda build: build.model().pop("adapter")),
        ["models.small.adapters", "weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", one_in(6, CASES))
def test_refused(fresh: Build, case: str) -> None:
    edit, words = CASES[case]
    edit(fresh)
    fresh.write_config()
    refused(fresh, words)
    assert not list(Path.cwd().glob("PWNED"))
