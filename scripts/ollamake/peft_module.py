"""Merges one module through peft's own layer: every method but plain LoRA, with peft's arithmetic and bounded memory.

A model is built that consists of that module alone, at its own path, so that patterns and names mean what they meant in
training; peft injects its layer, loads the module's adapter tensors and merges. Methods whose projections have one size
for the whole model (VeRA, RandLoRA) take it from the largest module, so decoys of that size, without memory, stand beside it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from ollamake.adapter import matches_module
from ollamake.errors import OllamakeError
from ollamake.foreign_pattern import matches_whole

_ELSEWHERE = (
    "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters",
    "trainable_token_indices", "layer_replication", "auto_mapping", "task_type", "ensure_weight_tying", "eva_config",
    "corda_config", "lora_ga_config", "loftq_config", "revision",
)  # fmt: skip
"""Fields that say which modules are reached, or how training began: here the module is given, and its tensors are."""
_ONE_SIZE_FOR_ALL = frozenset({"VERA", "PVERA", "RANDLORA"})
"""Methods whose random projections are as large as the largest module that they reach."""
_DECOY = "decoy"


def merge_module(
    config: Mapping[str, Any],
    module: str,
    kind: str,
    parameters: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, torch.Tensor]:
    """Return the merged parameters of a module in float32, under the names of ``parameters``.

    ``kind``: "linear", "conv1d" (transformers' Conv1D, weight [in, out]), "embedding", "conv" (1 to 3 dimensions) or "norm".
    ``parameters``: weight and, where the base has one, bias, in any floating dtype. ``tensors``: the adapter's tensors of
    this module and those that all modules share, under their names in the file. ``shapes``: module -> (outputs, inputs) of all
    modules that the adapter reaches. Raises OllamakeError if peft refuses, or leaves a tensor unused.
    """
    root = _root(module, _layer(kind, parameters))
    targets = [module]
    largest = _largest(config, module, shapes)
    if largest is not None:
        decoy = nn.Linear(largest[1], largest[0], bias=False, device="meta")
        decoy.weight = nn.Parameter(torch.zeros(1).expand(largest), requires_grad=False)
        root.add_module(_DECOY, decoy)
        targets.append(_DECOY)
    state = torch.random.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's advice to those who train
            adapted = get_peft_model(root, _configuration(config, module, targets, tensors))
            adapted.eval()
            _load(adapted, module, tensors)
            if largest is not None:
                setattr(adapted.base_model.model, _DECOY, nn.Identity())
            merged = adapted.merge_and_unload(safe_merge=True)
    except OllamakeError:
        raise
    except Exception as error:  # peft checks little of what a stranger's configuration and tensors may be
        raise OllamakeError(
            f"{module}: peft cannot merge its {config.get('peft_type')} update into this layer: {error}"
        ) from error
    finally:
        torch.random.set_rng_state(state)
    found = merged.get_submodule(module)
    return {name: getattr(found, name).detach().to(torch.float32) for name in parameters}


def _configuration(
    config: Mapping[str, Any], module: str, targets: list[str], tensors: Mapping[str, torch.Tensor]
) -> PeftConfig:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    known = set(kind.__dataclass_fields__)
    unknown = [key for key, value in config.items() if key not in known and value not in (None, False, "none", [], {})]
    if unknown:
        raise OllamakeError(
            f"adapter_config.json has options that the installed peft does not know: {', '.join(sorted(unknown))}."
            " It was written by a newer peft; merge it with that one's merge_and_unload() and give the result as `base`."
        )
    kept = {key: value for key, value in config.items() if key in known and key not in _ELSEWHERE}
    kept |= {"target_modules": targets, "inference_mode": True, "base_model_name_or_path": None}
    if config["peft_type"] == "LORA" and kept.get("init_lora_weights") not in ("pissa", "olora"):
        kept["init_lora_weights"] = True  # the others leave the base as it is, and what they began with is overwritten
    if config["peft_type"] == "ADALORA" and kept.get("rank_pattern"):
        # After training it has, for each module by name, which of its singular values were kept.
        kept["rank_pattern"] = {
            name: ranks for name, ranks in kept["rank_pattern"].items() if f"{module}.lora_" in name
        }
    if config["peft_type"] == "IA3":
        # It scales inputs there instead of outputs; peft tells by a pattern of the whole name, or by its end.
        ends = kept.get("feedforward_modules") or []
        is_feedforward = (
            matches_whole(ends, module, "adapter_config.json: feedforward_modules")
            if isinstance(ends, str)
            else any(map(module.endswith, ends))
        )
        kept["feedforward_modules"] = [module] if is_feedforward else []
    for key in ("rank_pattern", "alpha_pattern"):
        # The first that matches, as peft has it: a stranger's patterns are not for peft to match, which would wait for them.
        if config["peft_type"] != "ADALORA" and kept.get(key):
            place = f"adapter_config.json: {key}"
            found = [value for pattern, value in kept[key].items() if matches_module(pattern, module, place)]
            kept[key] = {re.escape(module): found[0]} if found else {}
    if kept.pop("proportional_parameters", False):
        # WaveFT gives each module its share by the sizes of all of them; how much it was, the saved spectrum tells.
        spectrum = next((tensor for name, tensor in tensors.items() if name.endswith("waveft_spectrum")), None)
        if spectrum is not None:
            kept |= {"n_frequency": spectrum.numel(), "n_frequency_pattern": {}}
    return kind(**copy.deepcopy(kept))


def _load(adapted: PeftModel, module: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the module's adapter tensors, all of them and each of them used."""
    wide = {
        name if name.startswith("base_model.") else f"base_model.model.{name}": (
            tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        )
        for name, tensor in tensors.items()
    }
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = {name for name in saved if f".{module}." in name and ".base_layer." not in name}
    missing = sorted(wanted - wide.keys())
    result = set_peft_model_state_dict(adapted, wide)
    if result.unexpected_keys or missing:
        raise OllamakeError(
            f"{module}: the tensors of the adapter are not those of its configuration;"
            f" unused: {', '.join(result.unexpected_keys[:3]) or 'none'}, missing: {', '.join(missing[:3]) or 'none'}."
        )


def _layer(kind: str, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    weight, bias = parameters["weight"], parameters.get("bias")
    shape, has_bias = weight.shape, bias is not None
    layer: nn.Module
    with torch.device("meta"):
        if kind == "linear":
            layer = nn.Linear(shape[1], shape[0], bias=has_bias)
        elif kind == "conv1d":
            layer = Conv1D(shape[1], shape[0])
        elif kind == "embedding":
            layer = nn.Embedding(shape[0], shape[1])
        elif kind == "conv":
            conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
            layer = conv(shape[1], shape[0], tuple(shape[2:]), bias=has_bias)
        elif kind == "norm":
            layer = nn.LayerNorm(shape, bias=has_bias)
        else:
            raise ValueError(f"no such kind of layer: {kind}")
    layer.weight = nn.Parameter(weight.detach().to(torch.float32).clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(torch.float32).clone(), requires_grad=False)
    return layer


def _root(module: str, layer: nn.Module) -> nn.Module:
    """Return a model that has ``layer`` at the path ``module`` and nothing else."""
    root = nn.Module()
    parent = root
    *parts, last = module.split(".")
    for part in parts:
        child = nn.Module()
        parent.add_module(part, child)
        parent = child
    parent.add_module(last, layer)
    return root


def _largest(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Return the most outputs and the most inputs that any reached matrix has, where the method asks for them."""
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    if config["peft_type"] not in _ONE_SIZE_FOR_ALL or not matrices:
        return None
    largest = max(shape[0] for shape in matrices), max(shape[1] for shape in matrices)
    return None if tuple(shapes.get(module, ())) == largest else largest
