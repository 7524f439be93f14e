"""Two models under one name in Ollama: the later registration would take the earlier one's place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ollamake.errors import OllamakeError
from ollamake.ollama_name import manifest_path

if TYPE_CHECKING:
    from ollamake.configuration import Model


def refuse_shared_names(models: Iterable[Model]) -> None:
    """Raise OllamakeError if two registrations would have one manifest; of the types that a plan may choose one is registered."""
    owners: dict[tuple[str, ...], tuple[Model, str]] = {}
    for model in models:
        for quantization, registered in model.registered_names.items():
            owner = f"models.{model.name} ({quantization})"
            other, others = owners.setdefault(manifest_path(registered), (model, owner))
            if owner != others and not (other is model and model.is_automatic):
                raise OllamakeError(
                    f"{owner} and {others} would both be registered as {registered!r}."
                    " Give one of them another `ollama.name`, or use {quant} in it."
                )
