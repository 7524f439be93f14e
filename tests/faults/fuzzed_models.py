"""Bases and adapters of strangers: their configurations and headers, and what a plan of the merge must do with them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.numpy import save
from strange_values import changed, with_strange_places

from ollamake.adapter import read_adapter
from ollamake.checkpoint import read_checkpoint
from ollamake.errors import OllamakeError
from ollamake.merge_plan import plan_merge
from ollamake.peft_methods import THROUGH_PEFT
from ollamake.source_files import source_files

_Q_PROJ = "model.layers.0.self_attn.q_proj"
_BASE = {"model.embed_tokens.weight": (16, 8), f"{_Q_PROJ}.weight": (8, 8), "lm_head.weight": (16, 8)}


def _base_file() -> bytes:
    return save({name: np.ones(shape, np.float32) for name, shape in _BASE.items()}, metadata={"format": "pt"})


_ADAPTER_CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {".*q_proj": 3},
    "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "use_rslora": True, "use_dora": False, "bias": "none",
    "init_lora_weights": True, "trainable_token_indices": [1], "base_model_name_or_path": "x", "target_parameters": ["a.b"],
    "layer_replication": None, "loftq_config": {}, "fan_in_fan_out": False,
}  # fmt: skip


@st.composite
def adapters(draw: st.DrawFn) -> bytes:
    """Return an adapter_config.json, a zero byte, and the weights."""
    config = draw(st.sampled_from([_ADAPTER_CONFIG, _ADAPTER_CONFIG, None])) or draw(
        with_strange_places(_ADAPTER_CONFIG)
    )
    if isinstance(config, dict) and draw(st.booleans()):
        config = config | {"peft_type": draw(st.sampled_from(sorted(THROUGH_PEFT)))}
    text = json.dumps(config).encode()
    text = draw(changed(text)) if draw(st.integers(0, 9)) == 0 else text
    module = st.sampled_from(["layers.0.self_attn.q_proj", "lm_head", "embed_tokens", "nowhere", "layers.0.self_attn"])
    ending = st.sampled_from(
        ["lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "base_layer.lora_A.weight", "weight",
         "lora_embedding_A", "trainable_tokens_delta", "modules_to_save.weight", "original_module.weight", "base_layer.weight"]
    )  # fmt: skip
    name = st.builds("base_model.model.model.{}.{}".format, module, ending) | st.text(max_size=10)
    shape = st.lists(st.sampled_from([0, 1, 2, 8, 16]), max_size=3).map(tuple)
    tensors = draw(st.dictionaries(name, shape, max_size=3))
    low_rank = {
        f"base_model.model.{_Q_PROJ}.lora_A.weight": (2, 8),
        f"base_model.model.{_Q_PROJ}.lora_B.weight": (8, 2),
    }
    tensors |= low_rank if draw(st.booleans()) else {}
    with contextlib.suppress(UnicodeEncodeError):
        weights = save({one: np.ones(size, np.float32) for one, size in tensors.items()})
        return text.replace(b"\0", b"") + b"\0" + weights
    return text + b"\0"


def check_adapter(content: bytes, folder: Path) -> str:
    """An adapter is planned to be merged, or refused."""
    text, _, weights = content.partition(b"\0")
    (folder / "adapter_config.json").write_bytes(text)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base/config.json").write_text('{"model_type": "qwen2", "tie_word_embeddings": false}')
    (folder / "base/model.safetensors").write_bytes(_base_file())
    base = read_checkpoint(str(folder / "base"), "base")
    try:
        plan = plan_merge(base, [read_adapter(folder)], "auto")
        json.dumps(plan, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except OllamakeError:
        return "refused"
    return "taken"


_INDEX: dict[str, Any] = {
    "metadata": {"total_size": 8},
    "weight_map": dict.fromkeys(_BASE, "a.safetensors"),
}
_CONFIG: dict[str, Any] = {
    "model_type": "qwen2", "tie_word_embeddings": False, "vocab_size": 16, "text_config": {"vocab_size": 16},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "_name_or_path": "x",
}  # fmt: skip


def bases() -> SearchStrategy[bytes]:
    def text(value: dict[str, Any]) -> SearchStrategy[bytes]:
        written = json.dumps(value).encode()
        strange = with_strange_places(value).map(lambda one: json.dumps(one).encode())
        return st.one_of(st.just(written), strange, changed(written))

    parts = st.tuples(text(_INDEX), text(_CONFIG), st.just(_base_file()) | changed(_base_file()))
    return parts.map(lambda three: b"\0".join(part.replace(b"\0", b"") for part in three[:2]) + b"\0" + three[2])


def check_base(content: bytes, folder: Path) -> str:
    """A base's headers are read, or refused, and nothing outside of its folder is."""
    index, config, weights = content.split(b"\0", 2)
    (folder / "model.safetensors.index.json").write_bytes(index)
    (folder / "config.json").write_bytes(config)
    (folder / "a.safetensors").write_bytes(weights)
    try:
        files, _ = source_files("base", str(folder), "models.m.base")
        assert {Path(file).parent for file in files} <= {folder}
        plan_merge(read_checkpoint(str(folder), "models.m.base"), [], "auto")
    except OllamakeError:
        return "refused"
    return "taken"
