"""What each tensor of an adapter file is, told from its name alone.

The names are those that peft 0.21 writes (peft/utils/save_and_load.py): ``base_model.model.``, the module's name in memory, and
what the tensor is there for. Wrappers of several parameters of one module are nested: ``experts.base_layer.lora_A.weight``
belongs to the parameter that was wrapped first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ollamake.errors import OllamakeError
from ollamake.safetensors_header import TensorEntry

_PREFIX = re.compile(r"^base_model\.model\.")
_LORA = re.compile(
    r"^(?P<module>.+?)(?P<nested>(\.base_layer)*)\.lora_(?P<half>[AB])(\.default)?\.(?P<what>weight|bias)$"
)
_EMBEDDING = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<half>[AB])(\.default)?$")
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?$")
_TOKENS = re.compile(r"^(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.default)?$")
_BASE_LAYER = re.compile(r"^(?P<module>.+?)(\.token_adapter)?(\.base_layer)+\.(?P<what>[a-z_]+)$")
_ORIGINAL = re.compile(r"^(?P<module>.+)\.original_module\.(?P<what>.+)$")
_SAVED = re.compile(r"^(?P<module>.+)\.modules_to_save(\.default)?\.(?P<what>.+)$")


@dataclass
class LowRank:
    """The two halves of one update, and what may come with them."""

    a: TensorEntry | None = None
    b: TensorEntry | None = None
    bias: TensorEntry | None = None
    magnitude: TensorEntry | None = None
    of_embedding: bool = False


@dataclass
class AdapterTensors:
    """The tensors of an adapter by what they are for; keys are names in memory."""

    low_rank: dict[str, list[LowRank]] = field(default_factory=dict)
    """Module -> its updates, outermost wrapper first: more than one only for target_parameters."""
    tokens: dict[str, TensorEntry] = field(default_factory=dict)
    """Embedding module -> trained rows."""
    replaced: dict[str, TensorEntry] = field(default_factory=dict)
    """Parameter -> what was trained or saved in its place."""
    beneath: dict[str, TensorEntry] = field(default_factory=dict)
    """Parameter -> the saved base of a layer that has an update besides."""
    copies: dict[str, TensorEntry] = field(default_factory=dict)
    """Parameter -> a second copy of what is in ``replaced`` (peft writes one where the vocabulary grew)."""
    originals: list[TensorEntry] = field(default_factory=list)
    """What a trained copy stands in place of; peft keeps it in memory, and the merged model has no use for it."""


def sort_tensors(tensors: Iterable[TensorEntry]) -> AdapterTensors:
    """Sort an adapter's tensors. Raises OllamakeError if two of them are for the same place."""
    found = AdapterTensors()
    for tensor in tensors:
        name = without_prefix(tensor.name)
        if lora := _LORA.match(name):
            updates = found.low_rank.setdefault(lora["module"], [])
            depth = lora["nested"].count(".base_layer")
            updates.extend(LowRank() for _ in range(depth + 1 - len(updates)))
            _set_half(updates[depth], "bias" if lora["what"] == "bias" else lora["half"].lower(), tensor)
        elif embedding := _EMBEDDING.match(name):
            update = found.low_rank.setdefault(embedding["module"], [LowRank()])[0]
            update.of_embedding = True
            _set_half(update, embedding["half"].lower(), tensor)
        elif magnitude := _MAGNITUDE.match(name):
            update = found.low_rank.setdefault(magnitude["module"], [LowRank()])[0]
            _set_half(update, "magnitude", tensor)
        elif tokens := _TOKENS.match(name):
            _once(found.tokens, tokens["module"], tensor)
        elif beneath := _BASE_LAYER.match(name):
            _once(found.beneath, f"{beneath['module']}.{beneath['what']}", tensor)
        elif saved := _SAVED.match(name):
            _once(found.copies, f"{saved['module']}.{saved['what']}", tensor)
        elif _ORIGINAL.match(name):
            found.originals.append(tensor)
        else:
            _once(found.replaced, name, tensor)
    for name in [name for name in found.copies if name not in found.replaced]:
        found.replaced[name] = found.copies.pop(name)
    return found


def is_saved_parameter(name: str) -> bool:
    """Whether a tensor is a parameter of the model itself, trained or saved whole, and not the update of a method."""
    return any(pattern.match(name) for pattern in (_TOKENS, _BASE_LAYER, _ORIGINAL, _SAVED))


def without_prefix(name: str) -> str:
    """Return a tensor's name without peft's own wrapping."""
    return _PREFIX.sub("", name)


def _set_half(update: LowRank, half: str, tensor: TensorEntry) -> None:
    earlier: TensorEntry | None = getattr(update, half)
    if earlier is not None:
        raise _two(earlier, tensor)
    setattr(update, half, tensor)


def _once(table: dict[str, TensorEntry], key: str, tensor: TensorEntry) -> None:
    if key in table:
        raise _two(table[key], tensor)
    table[key] = tensor


def _two(one: TensorEntry, other: TensorEntry) -> OllamakeError:
    return OllamakeError(f"two tensors of the adapter are for the same place: {one.name} and {other.name}")
