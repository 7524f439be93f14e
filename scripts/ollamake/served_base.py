"""The base whose GGUFs a model uses that is served as an adapter (`serve: adapter`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ollamake.errors import OllamakeError
from ollamake.ollama_name import checked_name

if TYPE_CHECKING:
    from ollamake.configuration import Model


def with_served_bases(models: Mapping[str, Model], base_of: Callable[[Model], Model]) -> dict[str, Model]:
    """Give every model that is served as an adapter the base whose GGUFs it uses, and add the bases that are not there.

    ``base_of`` makes a model without its adapters, not registered. Raises OllamakeError for what a model cannot have with
    `serve: adapter`.
    """
    result = dict(models)
    for name, model in models.items():
        if not model.serves_adapter:
            _refuse_idle_from(model)
            continue
        _refuse_idle_keys(model)
        if model.from_ollama is not None:
            _require_one_type(model, model.from_ollama)
            result[name] = replace(model, served_base=name)
            continue
        base = next((other for other in result.values() if other.base == model.base and not other.adapters), None)
        if base is None:
            base = replace(base_of(model), name=_free_name(model, result))
            result[base.name] = base
        result[name] = replace(model, served_base=base.name)
    return result


def _free_name(model: Model, taken: Mapping[str, Model]) -> str:
    """Return the name of a base by its folder, whichever of its adapters is named first: another name would be another build."""
    folder = Path(model.base)
    names = [folder.name, f"{folder.absolute().parent.name}-{folder.name}"]
    names = [re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:80] or "base" for name in names]
    free = [name for name in names if name not in taken]
    if not free:
        raise OllamakeError(
            f"models.{model.name}: its base {model.base} is built for `serve: adapter` under the name of its folder, but"
            f" {' and '.join(names)} are other models. Name the base as a model of its own (base: {model.base}, no adapter)."
        )
    return free[0]


def _refuse_idle_from(model: Model) -> None:
    if model.from_ollama is not None:
        why = "its weights are merged" if model.adapters else "it has no adapter"
        raise OllamakeError(
            f"models.{model.name}.ollama.from: has no effect, since {why}. It names the model in Ollama beside whose weights an"
            " adapter is served: set `serve: adapter`, or leave it out."
        )


def _require_one_type(model: Model, source: str) -> None:
    key = f"models.{model.name}"
    checked_name(source, f"{key}.ollama.from")
    if model.is_automatic or len(model.quantizations) != 1:
        found = "auto" if model.is_automatic else ", ".join(model.quantizations)
        raise OllamakeError(
            f"{key}.quantizations: expected the one type that {source} is of (`ollama show {source}` says it), since its weights"
            f" are taken as they are (ollama.from), found {found}."
        )


def _refuse_idle_keys(model: Model) -> None:
    key = f"models.{model.name}"
    if len(model.adapters) > 1:
        found = ", ".join(adapter.path for adapter in model.adapters)
        raise OllamakeError(
            f"{key}.serve: expected one adapter beside `serve: adapter`, found {found}. Ollama takes one for a model (it answers"
            f" several with `only one adapter is currently supported`)."
            " Set `serve: merged`, which adds all updates to the weights."
        )
    idle = ["imatrix"] * model.calibration.is_given + ["quality"] * model.quality.is_measured
    if idle:
        raise OllamakeError(
            f"{key}.{idle[0]}: has no effect with `serve: adapter`, where nothing is quantized but the base. Name the base as a"
            f" model of its own (base: {model.base}, no adapter) and give it {idle[0]}; its GGUFs are used then."
        )
