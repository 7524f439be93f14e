"""The plan of a model: what every quantization takes, where it fits and with how long a context, and which to take."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from ollamake.context_fit import ContextMemory
from ollamake.hardware import Hardware, budgets, configured_hardware, deciding
from ollamake.importance_sizes import sizes_of_model
from ollamake.memory_rows import Asked, Places, memory_rows
from ollamake.ollama_server import OllamaServer
from ollamake.plan_recommendation import recommend
from ollamake.planned_context import planned_contexts

_OF_GHOST = (
    "name",
    "source",
    "exact",
    "architecture",
    "parameters",
    "trained_context",
    "block_count",
    "outtype",
    "unquantized_bytes",
    "memory",
)
_OF_ALTERNATIVE = ("name", "source", "architecture", "parameters", "trained_context", "exact")


def memory_plan(
    model: str, ghost: Mapping[str, Any], alternatives: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Return plan.json for a model of the configuration.

    ``ghost``, ``alternatives``: what ghost.json says of the model and of those to compare it with. ``spec``:
    ``{"asked": {"context": tokens, "parallel": slots, "kv_cache": type, "margin_gib": GiB}, "hardware": the section of the
    configuration, "host": address of the Ollama server or None, "left_out": what the ghost does not have, {"adapters": True}
    or nothing, "imatrix": whether the model's quantizations are made with an importance matrix (no, if it is not there),
    "serves_adapter": whether the adapter stands beside the base, in float32 (no, if it is not there)}``.
    Raises OllamakeError for memory that cannot be meant, and for a number of slots that was not measured.
    """
    asked = Asked(**spec["asked"])
    imatrix = spec.get("imatrix", False)
    served = ghost["adapter_bytes"] if spec.get("serves_adapter") else 0
    ghost, *alternatives = ({**one, **sizes_of_model(one, model, imatrix)} for one in (ghost, *alternatives))
    hardware = configured_hardware(spec["hardware"])
    found = budgets(hardware, asked.margin_gib)
    decides = deciding(found)
    places = Places(found, next((i for i, place in enumerate(found) if place is decides), None), hardware.unified)

    ghost = _with_adapter(ghost, served)
    memory = ContextMemory(ghost, asked.parallel)
    judged = _judged(ghost, memory, asked, places)
    warnings = [*_server_warnings(hardware, spec["host"], asked), *judged.pop("warnings")]
    if spec["left_out"]:
        warnings.append(
            f"models.{model}: planned without its adapter, as its base is not here; a vocabulary that grew, or an output layer of"
            " its own, would make it larger"
        )
    return {
        "model": model,
        **{key: ghost[key] for key in _OF_GHOST},
        **({"adapter_bytes": served} if served else {}),
        "asked": asdict(asked),
        "hardware": {
            "source": hardware.source,
            "unified": hardware.unified,
            "gpus": [asdict(gpu) for gpu in hardware.gpus],
            "ram_gib": hardware.ram_gib,
        },
        "budgets": [asdict(place) | {"deciding": place is decides} for place in found],
        **judged,
        "with_imatrix": memory_rows({"types": ghost["with_imatrix"]}, memory, asked, places),
        "num_ctx": planned_contexts(judged["rows"], memory, asked, places, ghost["block_count"]),
        "transformers": [
            {"name": name, "bytes": size, "fits": [size <= place.usable_mib << 20 for place in found]}
            for name, size in ghost["transformers"].items()
        ],
        "warnings": warnings,
        "alternatives": [
            {key: other[key] for key in _OF_ALTERNATIVE}
            | _judged(other, ContextMemory(other, asked.parallel), asked, places)
            for other in alternatives
        ],
    }


def _with_adapter(ghost: Mapping[str, Any], size: int) -> Mapping[str, Any]:
    """Return a ghost with an adapter of ``size`` bytes beside the weights of every type, in whose file it is not."""
    types = {
        kind: one if "other_bytes" not in one else {**one, "other_bytes": one["other_bytes"] + size}
        for kind, one in ghost["types"].items()
    }
    return {**ghost, "types": types}


def _judged(ghost: Mapping[str, Any], memory: ContextMemory, asked: Asked, places: Places) -> dict[str, Any]:
    """Return what the plan says of any model, the user's own or an alternative."""
    rows = memory_rows(ghost, memory, asked, places)
    recommendation, why_none = recommend(ghost, memory, rows, asked, places)
    return {
        "rows": rows,
        "recommendation": recommendation,
        "no_recommendation": why_none,
        "warnings": _model_warnings(ghost, memory, asked),
    }


def _model_warnings(ghost: Mapping[str, Any], memory: ContextMemory, asked: Asked) -> list[str]:
    name, warnings = ghost["name"], []
    planned = memory.planned(asked.context)
    if planned < asked.context:
        warnings.append(
            f"plan.context: {asked.context:,} tokens are asked, but {name} was trained on {planned:,}; planned with {planned:,}"
        )
    if memory.limit is not None and memory.trained and memory.limit < memory.trained:
        warnings.append(
            f"{name} was trained on {memory.trained:,} tokens, but its memory was measured up to {memory.limit:,}; no longer"
            " context is planned"
        )
    if not ghost["exact"]:
        warnings.append(f"{name}: the size of the tokenizer in the GGUF is an estimate; file sizes are good to 0.1 %")
    if ghost["memory"]["source"] == "formula":
        warnings.append(
            f"{name}: KV cache and compute buffer are by formula ({ghost['memory'].get('reason', 'no llama-fit-params')}); the"
            " compute buffer is good to 3 % + 16 MiB"
        )
    return warnings


def _server_warnings(hardware: Hardware, host: str | None, asked: Asked) -> list[str]:
    """Warn of what is not so on the server, or not yet."""
    warnings = []
    if hardware.source == "detected" and host is not None:
        address = OllamaServer(host).address
        if not is_here(urlsplit(address).hostname or ""):
            warnings.append(
                f"hardware: detected where Snakemake runs, but the Ollama server is {address}; set hardware.gpus and"
                " hardware.ram_gib to what that machine has"
            )
    if asked.kv_cache != "f16":
        warnings.append(
            f"plan.kv_cache: {asked.kv_cache} lowers the quality of answers, beyond that of the weights' type; the plan holds"
            f" only for a server started with OLLAMA_KV_CACHE_TYPE={asked.kv_cache} and OLLAMA_FLASH_ATTENTION=1"
        )
    if asked.parallel > 1:
        warnings.append(
            f"plan.parallel: the plan holds only for a server started with OLLAMA_NUM_PARALLEL={asked.parallel}"
        )
    return warnings


def is_here(name: str) -> bool:
    """Return whether a host's name or address is this machine's."""
    if name.lower() in ("localhost", socket.gethostname().lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    # 0.0.0.0 and :: are what a server listens on; clients take them for this machine.
    return address.is_loopback or address.is_unspecified
