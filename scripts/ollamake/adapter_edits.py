"""From the tensors of one adapter to the edits of the base's tensors, each adapter tensor used exactly once.

An edit is a plain dictionary, since it is written to merge_plan.json; its ``kind`` says what is done:

- ``low_rank``: + scale * left @ right. ``a`` [rank, in] and ``b`` [out, rank] are named; ``transposed`` says that the base
  stores [in, out] (Conv1D, embeddings). ``expert`` [e, E] takes slice e of the halves of all E experts, ``experts`` E
  means that the base's tensor holds all of them; ``rows`` [first, last) takes these rows of ``b``. With ``magnitude``
  (DoRA, arXiv:2402.09353) the sum is scaled so that each row has that norm.
- ``add``: + scale * source, for the bias of lora_B.
- ``replace``: source in place of the base. ``rows``: rows ``indices`` replaced by those of source.
- ``module``: what peft's own layer makes of the module's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

from ollamake.adapter import Adapter
from ollamake.adapter_tensors import LowRank, is_saved_parameter, sort_tensors, without_prefix
from ollamake.checkpoint import FLOATS
from ollamake.safetensors_header import TensorEntry
from ollamake.tensor_names import Parameter, Piece, TensorNames

Edit = dict[str, Any]

_TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Model types whose 3-D experts are [E, in, out] in memory: `is_transposed=True` in transformers 5's modeling files. Asked
only where the shapes leave it open."""


_MOST_NESTED = 4
"""Updates of one module by target_parameters, of which every order is tried."""


class AdapterEdits:
    """Collects the edits of one adapter, and what does not fit, in ``problems``."""

    def __init__(self, number: int, adapter: Adapter, names: TensorNames, entries: Mapping[str, TensorEntry]) -> None:
        self.edits: dict[str, list[Edit]] = {}
        self.heads: dict[str, list[Edit]] = {}
        """Edits of tensors that the base does not store; legitimate only for a tied head."""
        self.rows: dict[str, int] = {}
        """Tensor -> rows after the edit, where the adapter brings another number of them."""
        self.problems: list[str] = []
        self._number, self._adapter, self._names, self._entries = number, adapter, names, entries
        self._conv1d: bool | None = None
        tensors = list(adapter.header.tensors)
        if not adapter.is_plain_lora:
            tensors = self._add_modules(tensors)
        self._sorted = sort_tensors(tensors)
        for name, tensor in self._sorted.beneath.items():
            self._replace(name, tensor)
        for name, tensor in self._sorted.replaced.items():
            self._replace(name, tensor, self._sorted.copies.get(name))
        for module, updates in self._sorted.low_rank.items():
            self._add_low_rank(module, updates)
        for module, tensor in self._sorted.tokens.items():
            self._add_tokens(module, tensor)

    @property
    def unused(self) -> set[str]:
        """Adapter tensors that peft saves but a merged model has no use for."""
        return {tensor.name for tensor in self._sorted.originals}

    def _replace(self, name: str, tensor: TensorEntry, copy: TensorEntry | None = None) -> None:
        edit: Edit = {"kind": "replace", "source": tensor.name, "shape": list(tensor.shape)}
        if copy is not None:
            edit["twins"] = [[tensor.name, copy.name]]
        parameter = self._names.find(name)
        if parameter is None:
            self._unstored(name, edit)
        elif parameter.stored is None:
            self.problems.append(f"{name}: saved whole, but the base stores it in {len(parameter.pieces)} tensors")
        elif parameter.shape != tensor.shape and not self._is_other_vocabulary(name, parameter, tensor):
            self.problems.append(
                f"{name}: the adapter saved {list(tensor.shape)}, the base has {list(parameter.shape)}"
            )
        else:
            if parameter.shape != tensor.shape:
                self.rows[parameter.stored] = tensor.shape[0]
            self._add(parameter.stored, edit)

    def _is_other_vocabulary(self, name: str, parameter: Parameter, tensor: TensorEntry) -> bool:
        """Whether a saved tensor is an embedding, or a head or its bias, with another number of rows."""
        if parameter.shape[1:] != tensor.shape[1:] or len(tensor.shape) != (1 if name.endswith(".bias") else 2):
            return False
        weight = f"{name.removesuffix('.bias')}.weight" if name.endswith(".bias") else name
        return self._names.is_head(weight) or (weight == name and self._names.is_embedding(name))

    def _add_low_rank(self, module: str, updates: list[LowRank]) -> None:
        halves = [(update.a, update.b) for update in updates]
        for a, b in halves:
            if a is None or b is None:
                there = "lora_A" if a else "lora_B" if b else "a magnitude or bias"
                self.problems.append(f"{module}: has {there} without its other half")
                return
            if not {a.dtype, b.dtype} <= FLOATS:
                self.problems.append(f"{module}: dtypes {a.dtype} and {b.dtype}; expected floating point")
                return
        weight = self._names.find(f"{module}.weight")
        if len(updates) == 1 and (weight is not None or not self._parameters_of(module)):
            self._add_update(module, f"{module}.weight", weight, updates[0])
            return
        for name, update in self._assigned(module, updates).items():
            self._add_update(module, name, self._names.find(name), update)

    def _parameters_of(self, module: str) -> list[str]:
        """Return the parameters of ``module`` that target_parameters names and the base has, in the order of wrapping."""
        targets = self._adapter.config.get("target_parameters") or ()
        names = []
        for target in targets:
            parent, _, parameter = target.rpartition(".")
            if not parent or module == parent or module.endswith(f".{parent}"):
                names.append(f"{module}.{parameter}")
        found = [name for name in dict.fromkeys(names) if self._names.find(name) is not None]
        # Wrapping follows the order in which a module declares its parameters: gate and up before down, everywhere in
        # transformers 5; it decides only where the shapes do not.
        return sorted(found, key=lambda name: (name.endswith("down_proj"), name))

    def _assigned(self, module: str, updates: list[LowRank]) -> dict[str, LowRank]:
        """Tell which of a module's nested updates is for which parameter: the one of its shape."""
        wanted = self._parameters_of(module)
        if len(updates) > _MOST_NESTED:
            self.problems.append(
                f"{module}: {len(updates)} updates of one module, which no module has the parameters for"
            )
            return {}
        outermost_first = list(reversed(wanted))
        for names in permutations(outermost_first, len(updates)):
            pairs = dict(zip(names, updates, strict=True))
            if all(self._fits(self._names.find(name), update) for name, update in pairs.items()):
                return pairs
        shapes = [[list(u.a.shape), list(u.b.shape)] for u in updates if u.a and u.b]
        there = {name: list(p.shape) for name in wanted if (p := self._names.find(name))}
        self.problems.append(
            f"{module}: updates {shapes} of target_parameters, the base has {there or 'no such parameter'}"
        )
        return {}

    @staticmethod
    def _fits(parameter: Parameter | None, update: LowRank) -> bool:
        if parameter is None or update.a is None or update.b is None or len(parameter.shape) not in (2, 3):
            return False
        return sorted((update.a.shape[-1], update.b.shape[0])) == sorted(parameter.shape[-2:])

    def _add_update(self, module: str, name: str, parameter: Parameter | None, update: LowRank) -> None:
        a, b = update.a, update.b
        assert a is not None
        assert b is not None
        if len(a.shape) != 2 or len(b.shape) != 2:
            self._add_module(module, [part.name for part in (a, b, update.bias, update.magnitude) if part is not None])
            return
        stacked = parameter is not None and len(parameter.shape) == 3
        experts = parameter.shape[0] if parameter is not None and stacked else 1
        if a.shape[0] != b.shape[1] or a.shape[0] % experts:
            self.problems.append(
                f"{module}: lora_A {list(a.shape)} and lora_B {list(b.shape)} have different ranks"
                + (f", or none of {experts} experts" if experts > 1 else "")
            )
            return
        rank = a.shape[0] // experts
        by_parameter = name != f"{module}.weight" or self._targets_parameter(name)
        scale = self._adapter.scale_of(name if by_parameter else module, rank)
        edit = {"kind": "low_rank", "a": a.name, "b": b.name, "rank": rank, "scale": scale}
        if update.magnitude is not None:
            edit["magnitude"] = update.magnitude.name
        if parameter is None:
            self._unstored(name, edit | {"transposed": False}, (b.shape[0], a.shape[1]))
            return
        rows = self.rows.get(parameter.stored or "", parameter.shape[0])
        matrix = parameter.shape[-2:] if stacked else (rows, *parameter.shape[1:])
        made = (b.shape[0], a.shape[1])
        if matrix not in (made, made[::-1]):
            self.problems.append(f"{module}: the update is {list(made)}, the base has {list(parameter.shape)}")
            return
        edit["transposed"] = self._is_transposed(module, matrix, made, update)
        if update.magnitude is not None and edit["transposed"]:
            # The norms run across the rows that are streamed here; peft's layer takes the matrix whole.
            self._add_module(module, [part.name for part in (a, b, update.bias, update.magnitude) if part is not None])
            return
        if update.magnitude is not None and update.magnitude.shape != made[:1]:
            self.problems.append(f"{module}: magnitudes {list(update.magnitude.shape)} of {list(made)}")
            return
        for piece in parameter.pieces:
            if self._entries[piece.name].dtype not in FLOATS | {"F8_E4M3"}:
                self.problems.append(f"{piece.name}: dtype {self._entries[piece.name].dtype}; expected floating point")
                return
            self._add(piece.name, edit | _place(piece, parameter, experts))
        if update.bias is not None:
            self._add_bias(module, update.bias, scale)

    def _targets_parameter(self, name: str) -> bool:
        targets = self._adapter.config.get("target_parameters") or ()
        return any(name == target or name.endswith(f".{target}") for target in targets)

    def _add_bias(self, module: str, bias: TensorEntry, scale: float) -> None:
        parameter = self._names.find(f"{module}.bias")
        if parameter is None or parameter.stored is None or parameter.shape != bias.shape:
            self.problems.append(
                f"{module}: lora_bias needs a bias {list(bias.shape)} in the base, which has"
                f" {list(parameter.shape) if parameter else 'none'}; peft cannot merge that either"
            )
            return
        self._add(parameter.stored, {"kind": "add", "source": bias.name, "scale": scale})

    def _is_transposed(self, module: str, matrix: tuple[int, ...], made: tuple[int, int], update: LowRank) -> bool:
        """Whether the base stores [in, out] where a linear layer stores [out, in]."""
        if update.of_embedding:
            return True
        if made[0] != made[1]:
            return matrix != made
        if self._names.find(f"{module}.weight") is not None:
            return self.is_conv1d(module)
        # Square experts: a neighbour of the same module that is not square tells; else the model's type.
        for name in self._parameters_of(module):
            other = self._names.find(name)
            for neighbour in self._sorted.low_rank[module]:
                if other and neighbour.a and neighbour.b and self._fits(other, neighbour):
                    pair = (neighbour.b.shape[0], neighbour.a.shape[1])
                    if pair[0] != pair[1]:
                        return other.shape[-2:] != pair
        return self._names.model_type in _TRANSPOSED_EXPERTS

    def is_conv1d(self, module: str) -> bool:
        """Whether a module is transformers' Conv1D, whose weight is [in, out] (GPT-2).

        A Conv1D always has a bias, as long as its weight's second dimension; where the weight is square, the other modules of
        the checkpoint tell, since no model mixes the two among its layers with a bias.
        """
        weight, bias = (self._names.find_stored(f"{module}.{what}") for what in ("weight", "bias"))
        if weight is None or bias is None or len(self._entries[weight].shape) != 2:
            return False
        rows, columns = self._entries[weight].shape
        if rows != columns:
            return self._entries[bias].shape == (columns,)
        if self._conv1d is None:
            self._conv1d = any(
                len(entry.shape) == 2
                and entry.shape[0] != entry.shape[1]
                and (other := self._entries.get(name.removesuffix("weight") + "bias")) is not None
                and name.endswith(".weight")
                and other.shape == (entry.shape[1],)
                for name, entry in self._entries.items()
            )
        return self._conv1d

    def _add_tokens(self, module: str, tensor: TensorEntry) -> None:
        indices = self._adapter.token_indices(module)
        edit = {"kind": "rows", "source": tensor.name, "indices": indices}
        parameter = self._names.find(f"{module}.weight")
        rows = tensor.shape[0] if tensor.shape else 0
        if len(indices) != rows or len(set(indices)) != rows:
            self.problems.append(f"{module}: {rows} trained tokens, trainable_token_indices names {len(set(indices))}")
        elif parameter is None or parameter.stored is None:
            self._unstored(f"{module}.weight", edit)
        elif tensor.shape[1:] != parameter.shape[1:] or max(indices, default=-1) >= self.rows.get(
            parameter.stored, parameter.shape[0]
        ):
            self.problems.append(
                f"{module}: trained tokens {list(tensor.shape)} up to {max(indices, default=-1)} of {list(parameter.shape)}"
            )
        else:
            self._add(parameter.stored, edit)

    def _add_modules(self, tensors: list[TensorEntry]) -> list[TensorEntry]:
        """Give modules to peft's own layer; return the tensors that are not of the method itself."""
        modules: dict[str, list[str]] = {}
        shared: list[str] = []
        others = []
        for tensor in tensors:
            name = without_prefix(tensor.name)
            module = self._module_of(name)
            whole = self._names.find_stored(name) is not None or (module is None and self._is_whole(name))
            if is_saved_parameter(name) or whole:
                others.append(tensor)
            elif module is not None:
                modules.setdefault(module, []).append(tensor.name)
            elif name == tensor.name:  # beside the model, not in it: vera_A, vblora_vector_bank
                shared.append(tensor.name)
            else:
                self.problems.append(self._names.why_absent(name))
        for module, own in modules.items():
            self._add_module(module, [*own, *shared])
        return others

    def _is_whole(self, name: str) -> bool:
        """Whether a name is that of a parameter which the base stores under another one, or not at all (a tied head)."""
        return self._names.find(name) is not None or self._names.is_head(name)

    def _module_of(self, name: str) -> str | None:
        """Return the innermost module of the base that an adapter tensor's name begins with."""
        parts = name.split(".")
        modules = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        # What transformers renames or ties is asked last: it takes seconds to import.
        for find in (self._names.find_stored, self._names.find, self._names.is_head):
            for module in modules:
                if find(f"{module}.weight") or find(f"{module}.bias"):
                    return module
        return None

    def _add_module(self, module: str, tensors: list[str]) -> None:
        name = f"{module}.weight"
        weight = self._names.find(name)
        if weight is not None and weight.stored is None:
            self.problems.append(
                f"{name}: peft's layer needs it whole, the base stores it in {len(weight.pieces)} tensors"
            )
            return
        # A weight that is not stored can only be a tied head, whose values are the embedding's.
        parameters = {"weight": name if weight is None or weight.stored is None else weight.stored}
        bias = self._names.find_stored(f"{module}.bias")
        if bias is None and self._names.find_stored(name) is None:
            renamed = self._names.find(f"{module}.bias")
            bias = renamed.stored if renamed is not None else None
        if bias is not None:
            parameters["bias"] = bias
        edit = {
            "kind": "module",
            "module": module,
            "layer": "linear" if weight is None else self._layer_of(module, weight.shape, tensors),
            "tensors": tensors,
            "parameters": parameters,
        }
        for key, stored in parameters.items():
            if key == "weight" and weight is None:
                self._unstored(name, edit | {"parameter": key})
            else:
                self._add(stored, edit | {"parameter": key})

    def _layer_of(self, module: str, shape: tuple[int, ...], tensors: list[str]) -> str:
        if len(shape) == 1:
            return "norm"
        if len(shape) > 2:
            return "conv"
        if any("_embedding_" in name for name in tensors) or self._names.is_embedding(f"{module}.weight"):
            return "embedding"
        return "conv1d" if self.is_conv1d(module) else "linear"

    def _unstored(self, name: str, edit: Edit, shape: tuple[int, ...] | None = None) -> None:
        self.heads.setdefault(name, []).append(self._numbered(edit) | ({"made": list(shape)} if shape else {}))

    def _add(self, stored: str, edit: Edit) -> None:
        self.edits.setdefault(stored, []).append(self._numbered(edit))

    def _numbered(self, edit: Edit) -> Edit:
        return {"adapter": self._number, "weight": self._adapter.weight} | edit


def sources_of(edit: Edit) -> list[str]:
    """Return the adapter tensors that an edit uses."""
    named = [edit[key] for key in ("a", "b", "magnitude", "source") if key in edit]
    return named + list(edit.get("tensors", ())) + [name for pair in edit.get("twins", ()) for name in pair]


def _place(piece: Piece, parameter: Parameter, experts: int) -> Edit:
    """Say which part of an update is a piece's."""
    place: Edit = {}
    if experts > 1 and piece.expert is None:
        place["experts"] = experts
    elif experts > 1:
        place["expert"] = [piece.expert, experts]
    if len(parameter.pieces) > 1:
        place["rows"] = [piece.first, piece.last]
    return place
