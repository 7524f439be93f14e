"""What a base's config.json says of its shape, before anything long is done with it: the converter reads it after the merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.checkpoint import Checkpoint
from ollamake.errors import OllamakeError
from ollamake.tensor_names import EMBEDDING

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_NAMES = ("architectures", "model_type")


def require_base_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raise OllamakeError if the config.json in ``file`` does not say which model it is of, or has sizes that are no numbers."""
    if not any(config.get(name) for name in _NAMES):
        raise OllamakeError(
            f"{file} has neither {' nor '.join(_NAMES)}, so it cannot be told which model this is. Fetch the file again, or save"
            " the model with transformers' save_pretrained()."
        )
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise OllamakeError(
            f"{file}: architectures is {kinds!r:.80}; expected a list of names, such as [Qwen2ForCausalLM]."
        )
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        _require_sizes(file, part)


def _require_sizes(file: Path, config: Mapping[str, Any]) -> None:
    for name in _SIZES:
        value = config.get(name)
        # Some families have a list, one for each layer.
        for size in value if isinstance(value, list) else [value]:
            if size is not None and (type(size) is not int or size < 0):
                raise OllamakeError(f"{file}: {name} is {size!r:.80}; expected a whole number. Fetch the file again.")


def require_vocabulary(base: Checkpoint) -> None:
    """Raise OllamakeError if config.json says another size of the vocabulary than the embedding has rows.

    transformers loads no such model, and the converter would end in an assertion. Families that pad the embedding by
    themselves say so (padded_vocab_size).
    """
    text = base.config.get("text_config")
    config = text if isinstance(text, Mapping) else base.config
    said = config.get("vocab_size")
    rows = {
        tensor.shape[0]
        for shard in base.shards
        for tensor in shard.tensors
        if EMBEDDING.search(tensor.name) and len(tensor.shape) == 2
    }
    if said is None or len(rows) != 1 or said in rows or "padded_vocab_size" in config:
        return
    raise OllamakeError(
        f"{base.folder / 'config.json'}: vocab_size is {said}, but the embedding in the weights has {rows.pop()} rows. One of"
        " them is of another model: fetch both again from one place."
    )
