"""Which stored tensors a module's parameter is: adapters speak of modules in memory, checkpoints of tensors on disk.

The two differ by leading wrappers (``model.``, ``language_model.``, ``transformer.``), which versions of transformers
and kinds of heads add and leave out, and by transformers' conversions: since version 5 the experts of a layer are one
3-D parameter in memory, while most checkpoints store each expert's matrices by themselves. The conversions are asked of
transformers itself (transformers.conversion_mapping), and only when a name cannot be found without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ollamake.safetensors_header import TensorEntry
from ollamake.tied_weights import tied_weights

_WRAPPERS = frozenset(
    {"base_model", "model", "module", "language_model", "text_model", "transformer", "gpt_neox", "_orig_mod"}
)
"""Leading parts of a name that say how a model is wrapped, not which tensor it is."""

_OUTSIDE_LAYERS = r"^(?!.*\.\d+\.)(.*\.)?"
"""What begins a name none of whose parts is a number: layers have heads and outputs of their own."""

EMBEDDING = re.compile(
    _OUTSIDE_LAYERS + r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings)\.weight$"
)
HEAD = re.compile(_OUTSIDE_LAYERS + r"(lm_head|embed_out|output|output_layer)\.weight$")
"""Names by which most models call the input embedding and the output head; TensorNames knows the others."""
ROUTER = re.compile(r"\.(mlp|block_sparse_moe|feed_forward|moe|ffn)\.(gate|router)\.weight$|\.router\.")
"""In the name of the tensors that choose the experts of a mixture."""


@dataclass(frozen=True)
class Piece:
    """A stored tensor that is a part of a parameter: of expert ``expert`` (None: of the whole), rows [first, last).

    Rows are counted in the dimension in which the parameter's parts are put one after another.
    """

    name: str
    expert: int | None
    first: int
    last: int


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is in memory: its shape, and the stored tensors that it is made of."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def stored(self) -> str | None:
        """The one stored tensor that is this parameter, or None where it is put together from several."""
        return self.pieces[0].name if len(self.pieces) == 1 and self.pieces[0].expert is None else None


class TensorNames:
    """Finds the stored tensors of a base by the names that its parameters have in memory."""

    def __init__(self, entries: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> None:
        self._entries = entries
        self._config = config
        self._not_followed: dict[str, str] = {}
        """Part of a name in memory -> how transformers makes such parameters, where that cannot be followed."""

    @property
    def model_type(self) -> str:
        """config.json's name of the architecture."""
        return str(self._config.get("model_type", ""))

    @cached_property
    def ties(self) -> dict[str, str] | None:
        """What the architecture can tie: name in memory -> name of what it is tied to; None if transformers does not know it."""
        return tied_weights(self._config)

    def is_embedding(self, name: str) -> bool:
        """Whether a parameter is the input embedding, by its usual names or because the architecture ties its head to it."""
        return EMBEDDING.search(name) is not None or _core(name) in map(_core, (self.ties or {}).values())

    def is_head(self, name: str) -> bool:
        """Whether a parameter is the output head, by its usual names or because the architecture can tie it."""
        return HEAD.search(name) is not None or (
            name.endswith(".weight") and _core(name) in map(_core, self.ties or {})
        )

    def find(self, name: str) -> Parameter | None:
        """Return the parameter ``name`` (``model.layers.0.self_attn.q_proj.weight``), or None if the base has none.

        A name that fits several stored tensors is one that cannot be told: None as well.
        """
        stored = self.find_stored(name)
        if stored is not None:
            return self._whole(stored)
        return self._converted.get(name) or self._converted_by_core.get(_core(name))

    def why_absent(self, name: str) -> str:
        """Say that the base has nothing for ``name``, and how transformers makes it where ``find`` cannot follow that.

        ``name`` is that of a parameter, or of an adapter's tensor beneath a module.
        """
        said = f"{name.removesuffix('.weight')}: the base has no such tensor"
        if stacked := self._stack_of(name):
            return f"{said}; it has all experts of the layer in {stacked}. Give it as published, with each expert by itself"
        not_followed = self._not_followed if self._converted is not None else {}
        how = next((how for module, how in not_followed.items() if f".{module}." in f".{name}."), None)
        if how is None:
            return said
        return (
            f"{said}; transformers makes it {how}, which ollamake does not follow. Merge with peft's"
            " merge_and_unload() and give the result as `base`, without an adapter"
        )

    def _stack_of(self, name: str) -> str | None:
        """Return a stored tensor that holds all experts of a layer, if ``name`` is of one of them."""
        single = re.match(r"(.*\.)[^.]+\.experts\.\d+\.", name)
        if single is None:
            return None
        layer = _core(single[1])
        stacks = (one for one, entry in self._entries.items() if ".experts." in one and len(entry.shape) == 3)
        return next((one for one in stacks if _core(one).startswith(layer)), None)

    def find_stored(self, name: str) -> str | None:
        """Return the stored tensor that is the parameter ``name``, without asking transformers for its conversions."""
        if name in self._entries:
            return name
        alike = self._by_core.get(_core(name), [])
        return alike[0] if len(alike) == 1 else None

    def _whole(self, name: str) -> Parameter:
        shape = self._entries[name].shape
        return Parameter(shape, (Piece(name, None, 0, shape[0] if shape else 1),))

    @cached_property
    def _by_core(self) -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for name in self._entries:
            table.setdefault(_core(name), []).append(name)
        return table

    @cached_property
    def _converted_by_core(self) -> dict[str, Parameter]:
        table: dict[str, Parameter] = {}
        twice = set()
        for name, parameter in self._converted.items():
            core = _core(name)
            twice |= {core} if core in table else set()
            table[core] = parameter
        return {core: parameter for core, parameter in table.items() if core not in twice}

    @cached_property
    def _converted(self) -> dict[str, Parameter]:
        """Name in memory -> parameter, for every stored tensor that transformers renames or puts together."""
        # Imported here: it takes seconds, and most adapters need no conversion.
        from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_renamings, rename_source_key

        conversions = self._conversions()
        renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        converters = [one for one in conversions if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        renamed: dict[str, Parameter] = {}
        collected: dict[str, dict[tuple[int, int], str]] = {}
        used: dict[str, Any] = {}
        for stored in self._entries:
            name, pattern = rename_source_key(stored, renamings, converters)
            if pattern is None:
                if name != stored:
                    renamed[name] = self._whole(stored)
                continue
            converter = by_pattern[pattern]
            index = _index_in(apply_renamings(stored, renamings), pattern)
            place = (index if index is not None else -1, converter.source_patterns.index(pattern))
            collected.setdefault(name, {})[place] = stored
            used[name] = converter
        for name, parts in collected.items():
            steps = [type(step).__name__ for step in used[name].operations]
            parameter = self._put_together(parts, steps, used[name])
            if parameter is not None:
                renamed[name] = parameter
                continue
            for target in used[name].target_patterns:
                module = target.strip("^$").replace("\\", "").rpartition("*")[2].removesuffix(".weight").strip(".")
                self._not_followed[module] = f"from {min(parts.values())} and its like ({', '.join(steps)})"
        return renamed

    def _conversions(self) -> list[Any]:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        text = self._config.get("text_config")
        kinds = [*(self._config.get("architectures") or ()), self._config.get("model_type")]
        kinds.append(text.get("model_type") if isinstance(text, Mapping) else None)
        mappings = [get_checkpoint_conversion_mapping(kind) for kind in dict.fromkeys(kinds) if kind]
        return [conversion for mapping in mappings for conversion in mapping or ()]

    def _put_together(self, parts: Mapping[tuple[int, int], str], steps: list[str], converter: Any) -> Parameter | None:
        """Return the parameter that stacking experts and concatenating matrices makes; None for other conversions."""
        experts = sorted({expert for expert, _ in parts})
        kinds = sorted({kind for _, kind in parts})
        if len(parts) != len(experts) * len(kinds):
            return None
        stacked = steps[:1] == ["MergeModulelist"]
        if steps not in (["MergeModulelist"], ["MergeModulelist", "Concatenate"], ["Concatenate"]):
            return None
        if stacked and (experts != list(range(len(experts))) or converter.operations[0].dim != 0):
            return None
        if steps[-1] == "Concatenate" and converter.operations[-1].dim != (1 if stacked else 0):
            return None
        first = self._entries[parts[experts[0], kinds[0]]].shape
        pieces, row = [], 0
        for kind in kinds:
            height = self._entries[parts[experts[0], kind]].shape[0]
            for expert in experts:
                stored = parts[expert, kind]
                if self._entries[stored].shape != (height, *first[1:]):
                    return None
                pieces.append(Piece(stored, expert if stacked else None, row, row + height))
            row += height
        shape = (len(experts), row, *first[1:]) if stacked else (row, *first[1:])
        return Parameter(shape, tuple(pieces))


def _core(name: str) -> str:
    """Return a name without its leading wrappers."""
    parts = name.split(".")
    kept = next((number for number, part in enumerate(parts) if part not in _WRAPPERS), len(parts) - 1)
    return ".".join(parts[kept:])


def _index_in(name: str, pattern: str) -> int | None:
    """Return the number that stands in ``name`` where ``pattern`` has its asterisk, or None if it has none.

    Patterns of transformers are regular expressions but for the asterisk, which stands for one part of a name.
    """
    found = re.search(pattern.replace("*", r"(?P<index>\d+)"), name) if "*" in pattern else None
    return int(found["index"]) if found else None
