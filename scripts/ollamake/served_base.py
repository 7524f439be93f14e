"""The base whose GGUFs a model uses that is served as an adapter (`serve: adapter`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ollamake.errors import OllamakeError

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
            continue
        _refuse_idle_keys(model)
        base = next((other for other in result.values() if other.base == model.base and not other.adapters), None)
        if base is None:
            base = base_of(model)
            if base.name in result:
                raise OllamakeError(
                    f"models.{base.name}: this name is taken by the base of models.{name} (serve: adapter), but has another"
                    " base or an adapter. Give it another name."
                )
            result[base.name] = base
        result[name] = replace(model, served_base=base.name)
    return result


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
