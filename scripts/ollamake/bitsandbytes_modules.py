"""What transformers does with each tensor of a checkpoint that it loads quantized by bitsandbytes, asked of transformers.

The model is built without weights (on torch's meta device) and given to the quantizer of transformers, which puts its layers
in the places of those that it quantizes. Names are followed as core_model_loading.convert_and_load_state_dict_in_model of
transformers 5.24 follows them, and dtypes are chosen as there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, build_glob_alternation, rename_source_key
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ollamake.bitsandbytes_sizes import EXPERT
from ollamake.bitsandbytes_treatment import TreatedCheckpoint, Treatment
from ollamake.errors import OllamakeError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What bitsandbytes quantizes."""


def treat_checkpoint(
    config: Mapping[str, Any], names: Sequence[str], settings: Mapping[str, Any], key: str
) -> TreatedCheckpoint:
    """Return what becomes of the tensors ``names`` of a checkpoint.

    ``config``: its config.json. ``settings``: arguments of transformers' BitsAndBytesConfig. ``key``: the key of the
    configuration that messages name. Raises OllamakeError for a model that transformers does not have, or that it can quantize
    only as a whole, for a skipped module that it has not, if none of its layers would be quantized, and if one would be that
    is tied to another.
    """
    model, quantizer = _quantized_skeleton(config, settings, key)
    transforms = get_model_conversion_mapping(model, None, quantizer)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    state = model.state_dict()
    dtype_of = _DtypeOf(model, state)
    prefix = model.base_model_prefix
    treatments: dict[str, Treatment] = {}
    owners: dict[str, str] = {}
    left_out, experts = [], []
    for name in names:
        inside, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if inside not in state and name in state:
            inside, pattern = rename_source_key(name, [], [], prefix, state)
        if inside not in state:
            left_out.append(name)
            continue
        quantized = quantizer.param_needs_quantization(model, inside)
        if pattern is not None:
            if quantized:
                raise OllamakeError(
                    f"{key}: transformers {transformers.__version__} makes the layer {inside} from several tensors of the"
                    f" checkpoint ({name} is one) and would quantize what it made, which it cannot save. Leave"
                    f" {key}.types empty for this model."
                )
        else:
            owners[inside] = name
        if not quantized and EXPERT.search(name):
            experts.append(name)
        layer = model.get_submodule(inside.rpartition(".")[0]) if quantized else None
        transposed = layer is not None and issubclass(layer.source_cls, Conv1D)  # type: ignore[arg-type]
        treatments[name] = Treatment(dtype_of(inside, quantized), quantized, transposed)
    for target, source in model.all_tied_weights_keys.items():
        if quantizer.param_needs_quantization(model, target):
            raise OllamakeError(
                f"{key}.skip_modules: {target} is tied to {source}, so it cannot be quantized alone. Add"
                f" {target.removesuffix('.weight')}, or leave the key out: transformers then skips it itself."
            )
        if target in owners and source in owners:
            left_out.append(owners[target])
            del treatments[owners[target]]
    if not any(treatment.quantized for treatment in treatments.values()):
        raise OllamakeError(
            f"{key}: bitsandbytes would quantize nothing of this model: it has no linear layer that is not skipped."
            f" Look at {key}.skip_modules, or leave {key}.types empty."
        )
    layers = [name for name, module in model.named_modules() if type(module) in (torch.nn.Linear, Conv1D)]
    return TreatedCheckpoint(treatments, tuple(sorted(left_out)), tuple(layers), tuple(experts))


def _quantized_skeleton(
    config: Mapping[str, Any], settings: Mapping[str, Any], key: str
) -> tuple[PreTrainedModel, Any]:
    """Return the model without weights, its layers replaced, and the quantizer that has done it."""
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**settings), pre_quantized=False)
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            typed = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if typed.dtype not in _DTYPES:
            raise OllamakeError(f"{key}: the merged weights are {typed.dtype}. Set merge.dtype: float16 or bfloat16.")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(typed, dtype=typed.dtype, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OllamakeError(
            f"{key}: transformers {transformers.__version__} has no causal language model for"
            f" model_type {config.get('model_type')!r} ({first}). bitsandbytes checkpoints are made for models of"
            f" transformers itself; leave {key}.types empty for this one."
        ) from error
    _require_named(model, settings.get("llm_int8_skip_modules") or (), key)
    with _default_dtype(typed.dtype):  # as in from_pretrained: it is what the biases of the new layers have
        quantizer.preprocess_model(model, dtype=typed.dtype, device_map={"": "cpu"})
    return model, quantizer


def _require_named(model: PreTrainedModel, skipped: Sequence[str], key: str) -> None:
    """Raise OllamakeError for an entry of `skip_modules` that is the name of no linear layer, by transformers' own rule."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    for entry in skipped:
        try:
            if not all(should_convert_module(name, [entry]) for name in layers):
                continue
        except re.error as error:
            raise OllamakeError(
                f"{key}.skip_modules: {entry!r} is not a name, nor a regular expression: {error}."
            ) from None
        known = dict.fromkeys(part for name in layers for part in (name.rpartition(".")[2], name))
        close = difflib.get_close_matches(entry, known, cutoff=0.5) or sorted(
            {name.rpartition(".")[2] for name in layers}
        )
        raise OllamakeError(
            f"{key}.skip_modules: {entry!r} names no linear layer of the model. Did you mean {', '.join(close[:8])}?"
        )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _DtypeOf:
    """The dtype that the loader gives a parameter."""

    def __init__(self, model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
        self._dtype = model.config.dtype
        self._state = state
        self._plan = model._get_dtype_plan(self._dtype)
        if self._plan:
            self._pattern, self._by_group, _ = build_glob_alternation(list(self._plan))

    def __call__(self, inside: str, quantized: bool) -> torch.dtype:
        match = self._pattern.search(inside) if self._plan else None
        if match is not None:
            return self._plan[self._by_group[match.lastgroup]]  # type: ignore[no-any-return]
        return self._dtype if quantized else self._state[inside].dtype
