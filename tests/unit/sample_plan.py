"""A plan as ollamake.memory_plan writes it: Qwen2.5-32B-Instruct with the sizes of its published GGUFs, on 36 GiB."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollamake.gpu_detection import Gpu
from ollamake.hardware import Budget, Hardware, budgets, deciding
from ollamake.memory_formula import KV_BITS
from ollamake.published_quality import CANDIDATES, by_quality, published_quality
from ollamake.quantization_types import QUANTIZATION_TYPES

PARAMETERS = 32763876352
METADATA_BYTES = 5_960_000
EMBEDDING_ELEMENTS = 152064 * 5120
BLOCKS = 64

FILE_MB = {
    "F16": 65536, "Q8_0": 34821, "Q6_K": 26886, "Q5_K_M": 23262, "Q5_K_S": 22638, "Q4_K_M": 19851, "Q4_K_S": 18784,
    "IQ4_XS": 17870,
}  # fmt: skip
GPU_MIB = {"Q8_0": 32413, "Q6_K": 25026, "Q5_K_M": 21668, "Q4_K_M": 18508}
"""Weights on the GPU with all layers there, as llama-fit-params prints them."""
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
REFUSED = {"MXFP4_MOE": "not for a model without experts"}


def sample_plan(
    model: str = "rag-finetuned",
    gpus: Sequence[tuple[str, float]] = (("A100-40GB", 36.0),),
    ram_gib: float | None = 64.0,
    context: int = 8192,
    parallel: int = 1,
    kv_cache: str = "f16",
    trained_context: int = 32768,
    impossible: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a plan.json; ``gpus``: name and GiB of each; ``impossible``: cache types the model cannot have -> why."""
    impossible = dict(impossible or {})
    hardware = Hardware(tuple(Gpu(name, gib) for name, gib in gpus), ram_gib, False, "configured")
    places = budgets(hardware, 1.0)
    chosen = deciding(places)
    planned = min(context, trained_context)
    asked = {"context": context, "parallel": parallel, "kv_cache": kv_cache, "margin_gib": 1.0}
    rows = [_row(kind, places, asked, trained_context, impossible) for kind in by_quality() if kind not in REFUSED]
    recommendation, refusal = _recommendation(rows, None if chosen is None else places.index(chosen))
    transformers = {"FP16": 65527752704, "INT8": 34324807680, "NF4": 19219722240}
    return {
        "model": model,
        "name": "Qwen/Qwen2.5-32B-Instruct",
        "source": "https://huggingface.co/Qwen/Qwen2.5-32B-Instruct",
        "exact": True,
        "architecture": "qwen2",
        "parameters": PARAMETERS,
        "trained_context": trained_context,
        "block_count": BLOCKS,
        "outtype": "F16",
        "unquantized_bytes": 65536 * 10**6,
        "asked": asked,
        "hardware": {
            "source": "configured",
            "unified": False,
            "gpus": [{"name": name, "memory_gib": gib} for name, gib in gpus],
            "ram_gib": ram_gib,
        },
        "budgets": [
            {
                "name": place.name,
                "kind": place.kind,
                "memory_gib": place.memory_gib,
                "usable_mib": place.usable_mib,
                "devices": place.devices,
                "deciding": place == chosen,
            }
            for place in places
        ],
        "memory": {
            "source": "llama-fit-params",
            "rows": _memory_rows(planned, parallel, trained_context, impossible),
            "impossible": impossible,
        },
        "rows": [*rows, *({"type": kind, "refused": why} for kind, why in REFUSED.items())],
        "recommendation": recommendation,
        "no_recommendation": refusal,
        "num_ctx": {row["type"]: _num_ctx(row, places, chosen, asked) for row in rows},
        "transformers": [
            {"name": name, "bytes": size, "fits": [size >> 20 <= place.usable_mib for place in places]}
            for name, size in transformers.items()
        ],
        "warnings": [],
        "alternatives": [],
        "with_imatrix": [],
    }


def alternative(plan: Mapping[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    """Return the entry that another plan has among a plan's alternatives."""
    keys = (
        "source", "architecture", "parameters", "trained_context", "exact", "rows", "recommendation", "no_recommendation",
        "warnings",
    )  # fmt: skip
    return {"name": name, **{key: plan[key] for key in keys}, **changes}


def without_memory(plan: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return the plan of a model whose KV cache nobody knows: sizes are there, whether they fit is not."""
    return plan | {
        "memory": {"source": None, "reason": reason, "rows": [], "impossible": {}},
        "rows": [
            row if "refused" in row else row | {"fits": [unknown_fit() for _ in plan["budgets"]]}
            for row in plan["rows"]
        ],
        "recommendation": None,
        "no_recommendation": "What the KV cache takes is unknown, so nothing is recommended. Build llama.cpp's programs.",
    }


def unknown_fit() -> dict[str, Any]:
    """Return the entry of a budget where the KV cache is unknown."""
    largest = dict.fromkeys(KV_BITS)
    return {"fits": None, "total_mib": None, "free_mib": None, "largest_context": largest, "gpu_layers": None}


def kv_mib(tokens: int, kv: str) -> int:
    """Return the KV cache of ``tokens`` in all slots together: 256 KiB a token in f16."""
    return int(tokens * 256 * KV_BITS[kv] / 16) >> 10


def compute_mib(tokens: int) -> int:
    """Return the compute buffer: 206, 234 and 330 MiB at 4, 32 and 128 thousand tokens."""
    return 202 + (tokens >> 10)


def _memory_rows(context: int, parallel: int, trained: int, impossible: Mapping[str, str]) -> list[dict[str, Any]]:
    contexts = sorted({2**power for power in range(11, 18) if 2**power <= trained} | {trained, context})
    return [
        {"kv": kv, "parallel": slots, "context": length, "kv_mib": kv_mib(length * slots, kv),
         "compute_mib": compute_mib(length)}
        for kv in KV_BITS
        if kv not in impossible
        for slots in sorted({1, 2, 4, parallel})
        for length in contexts
    ]  # fmt: skip


def _row(
    kind: str, places: Sequence[Budget], asked: Mapping[str, Any], trained: int, impossible: Mapping[str, str]
) -> dict[str, Any]:
    bits = QUANTIZATION_TYPES[kind].bits_per_weight
    name = ALIASES.get(kind, kind)
    size = FILE_MB[name] * 10**6 if name in FILE_MB else int(PARAMETERS * bits / 8)
    host = int(EMBEDDING_ELEMENTS * bits / 8) >> 20
    gpu = GPU_MIB.get(name, (size - METADATA_BYTES >> 20) - host)
    needs_imatrix = QUANTIZATION_TYPES[kind].needs_imatrix
    return {
        "type": kind,
        "imatrix": needs_imatrix,
        "bytes": size,
        "bits_per_weight": round(size * 8 / PARAMETERS, 3),
        "gpu_mib": gpu,
        "host_mib": host,
        "quality": published_quality(kind, needs_imatrix),
        "candidate": kind in CANDIDATES,
        "fits": [_fit(gpu, host, place, asked, trained, impossible) for place in places],
    }


def _fit(
    gpu: int, host: int, place: Budget, asked: Mapping[str, Any], trained: int, impossible: Mapping[str, str]
) -> dict[str, Any]:
    weights = gpu + host if place.kind == "ram" else gpu

    def total(context: int, kv: str) -> int:
        return weights + kv_mib(context * asked["parallel"], kv) + place.devices * compute_mib(context)

    planned = min(asked["context"], trained)
    if asked["kv_cache"] in impossible:
        return unknown_fit() | {"largest_context": _largest(total, place, trained, impossible)}
    needed = total(planned, asked["kv_cache"])
    free = place.usable_mib - needed
    compute = place.devices * compute_mib(planned)
    layers = max(0, place.usable_mib - compute) * (BLOCKS + 1) // (needed - compute)
    return {
        "fits": free >= 0,
        "total_mib": needed,
        "free_mib": free,
        "largest_context": _largest(total, place, trained, impossible),
        "gpu_layers": None if free >= 0 or place.kind == "ram" else layers,
    }


def _largest(
    total: Callable[[int, str], int], place: Budget, trained: int, impossible: Mapping[str, str]
) -> dict[str, int | None]:
    return {
        kv: None
        if kv in impossible
        else max((c for c in range(256, trained + 1, 256) if total(c, kv) <= place.usable_mib), default=0)
        for kv in KV_BITS
    }


def _recommendation(rows: Sequence[Mapping[str, Any]], place: int | None) -> tuple[dict[str, Any] | None, str | None]:
    if place is None:
        return None, "Nothing is known of the hardware. Set hardware.gpus or hardware.ram_gib."
    candidates = [row for row in rows if row["candidate"]]
    if candidates[0]["fits"][place]["fits"] is None:
        return None, "A KV cache of this type is not possible. Set plan.kv_cache to f16."
    fitting = [row["type"] for row in candidates if row["fits"][place]["fits"]]
    if not fitting:
        return None, "Not even Q2_K fits. Take a smaller model, or let part of the layers stay in RAM."
    names = [row["type"] for row in candidates]
    index = names.index(fitting[0])
    larger, smaller = (names[index - 1] if index else "F16"), names[index + 1 : index + 2]
    return {
        "type": fitting[0],
        "reason": f"{fitting[0]} is the best type that fits.",
        "up": {"type": larger, "reason": f"{larger} would lose less but does not fit."},
        "down": {"type": smaller[0], "reason": f"{smaller[0]} leaves room for a longer context."} if smaller else None,
    }, None


def _num_ctx(
    row: Mapping[str, Any], places: Sequence[Budget], chosen: Budget | None, asked: Mapping[str, Any]
) -> dict[str, Any]:
    if chosen is None:
        return {"tokens": asked["context"], "reason": "nothing is known of the hardware, so it is what was asked"}
    fit = row["fits"][places.index(chosen)]
    if fit["fits"] is None or not fit["fits"]:
        return {"tokens": asked["context"], "reason": f"it does not fit {chosen.name}, so it is what was asked"}
    tokens = fit["largest_context"][asked["kv_cache"]]
    return {"tokens": tokens, "reason": f"the largest context with a KV cache of {asked['kv_cache']} on {chosen.name}"}
