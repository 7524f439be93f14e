"""What the configuration says of serving a model with something else than Ollama: `models.NAME.serving`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ollamake.errors import OllamakeError
from ollamake.source_files import is_on_hub

MERGED, NF4, INT8, ADAPTER = CHECKPOINTS = ("merged", "nf4", "int8", "adapter")
"""The merged weights in 16 bits, as bitsandbytes quantizes them to 4 or 8, and the base with the adapter beside it."""


@dataclass(frozen=True)
class Serving:
    """What files are written for. ``checkpoints``: as in CHECKPOINTS; ``port``: where the server listens on this machine."""

    checkpoints: tuple[str, ...]
    port: int


class Adapter(Protocol):
    """An adapter's folder and weight."""

    @property
    def path(self) -> str: ...
    @property
    def weight(self) -> float: ...


def serving_of(
    filled: Mapping[str, Any], key: str, adapters: Sequence[Adapter], keep: Mapping[str, bool]
) -> Serving | None:
    """Return `serving` of a model whose defaults are filled in, None where there is none; ``keep``: the configuration's.

    Raises OllamakeError for a checkpoint that is not made or not kept.
    """
    given, key = filled["serving"], f"{key}.serving"
    if given is None:
        return None
    bitsandbytes = (filled.get("bitsandbytes") or {}).get("types") or ()
    beside = filled["serve"] == "adapter" and bool(adapters)
    refused = {
        **({MERGED: _not_merged(beside, keep["merged"])} if beside or not keep["merged"] else {}),
        **{kind: f"`bitsandbytes: {{types: [{kind}]}}` makes it" for kind in (NF4, INT8) if kind not in bitsandbytes},
        **({ADAPTER: why} if (why := _not_one(adapters) or _not_kept(filled["base"], keep["downloads"])) else {}),
    }
    checkpoints = given["checkpoints"]
    if checkpoints is None:
        # An adapter that is merged is not what the user wants to serve, unless it is said.
        asked = [ADAPTER] if beside else [MERGED, NF4, INT8]
        checkpoints = [kind for kind in asked if kind not in refused]
        if not checkpoints:
            raise OllamakeError(f"{key}: there is nothing to serve: {asked[0]}: {refused[asked[0]]}.")
    for kind in checkpoints:
        if kind in refused:
            raise OllamakeError(f"{key}.checkpoints: {kind} cannot be served: {refused[kind]}.")
    return Serving(tuple(kind for kind in CHECKPOINTS if kind in checkpoints), given["port"])


def _not_merged(beside: bool, keeps_merged: bool) -> str:
    if beside:
        return "with `serve: adapter` nothing is merged; take adapter, or `serve: merged`"
    return "`keep.merged: false` removes the merged weights when the GGUF has been made; set it to true"


def _not_kept(base: str, keeps_downloads: bool) -> str | None:
    if keeps_downloads or not is_on_hub(base):
        return None
    return "`keep.downloads: false` removes the base's weights when they are used; set it to true"


def _not_one(adapters: Sequence[Adapter]) -> str | None:
    if not adapters:
        return "the model has no adapter; take merged"
    if len(adapters) > 1:
        return f"a server applies one adapter to a request, and the model is the sum of {len(adapters)}; take merged"
    if adapters[0].weight != 1:
        return f"its update is added {adapters[0].weight:g} times, which servers cannot; take merged"
    return None
