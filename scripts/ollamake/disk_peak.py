"""The most disk that a build takes while it runs: its steps in their order, with intermediate files going when they are used.

Files appear under a temporary name in their own folder and are renamed, so nothing is ever there twice; what is there
already is not written again, and not taken to go away. Several quantizations may run side by side, and each needs the
unquantized GGUF: it goes after the last one.

Other models of a configuration are not stepped through: of those that are built before, it counts what they will still add and
keep. Later ones begin only when they fit beside (disk_turns).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.bitsandbytes_needs import checkpoint_bytes
from ollamake.job_needs import METADATA_BYTES, converted_adapter_bytes, quantized_bytes, shard_bytes, unquantized_bytes
from ollamake.quantization_types import QUANTIZATION_TYPES

SERVER_COPIES = 3
"""Copies of a GGUF that Ollama has while it creates a model, from 0.30 on: the upload, the rewritten file and the layer."""

TOOLS_BYTES = 300_000_000
"""llama.cpp's source, what is compiled of it and its programs (151 MB with two programs), and its archive."""

MADE_HERE_BYTES = 100_000_000
"""Allowance for a model of a few million parameters, whose files do not exist yet."""

_CHECKPOINT_SHARE = {"nf4": 0.4, "int8": 0.6}
"""About what a bitsandbytes checkpoint takes of the merged weights, whose embeddings it keeps (3 B: 0.36 and 0.55, measured)."""

REGISTRATIONS = ("shared", "copy", "server", "elsewhere")
"""Where a model's weights go when it is registered: to a store on the same filesystem, which shares blocks or the file
(shared) or on another (copy); to a server of this machine, whose models are taken to lie on the same disk (server), or of
another machine (elsewhere)."""


@dataclass(frozen=True)
class Registration:
    """Where models are registered now: ``way`` is one of REGISTRATIONS, ``target`` server or store, ``place`` its address or
    folder."""

    way: str
    target: str
    place: str

    def made(self, marker_file: Path) -> bool:
        """Whether a registration marker is there and says this place; one that cannot be read says nothing."""
        try:
            marker = json.loads(marker_file.read_text(encoding="utf-8"))
            if marker["target"] != self.target:
                return False
            if self.target == "store":
                return Path(marker["store"]).resolve() == Path(self.place).resolve()
            return bool(marker["host"] == self.place)
        except (OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class DiskPeak:
    """Bytes above what is there now. ``needed`` at the most, at ``step``; ``stays`` when the build is finished.

    ``in_store``: bytes that go to a store on another filesystem. ``others`` and ``others_in_store``: what the other models of
    the configuration add to ``needed`` and ``in_store``; not in these.
    """

    needed: int
    step: str
    stays: int
    in_store: int
    others: int = 0
    others_in_store: int = 0


def disk_peak(
    plan: Mapping[str, Any],
    name: str,
    folder: Path,
    quantizations: Sequence[str],
    registration: Registration,
    *,
    keep_merged: bool,
    keep_unquantized: bool,
    builds_tools: bool = False,
    compared: Sequence[str] = (),
    measured_unquantized: bool = False,
    checkpoints: Sequence[str] = (),
) -> DiskPeak:
    """Return the peak of building a model in ``folder`` (results/MODEL), from its parsed merge_plan.json.

    A model whose marker says the place of ``registration`` is not registered again. ``builds_tools``: llama.cpp is fetched
    and compiled first. ``compared``: types that are measured, not registered. ``measured_unquantized``: the unquantized GGUF
    is measured itself, as that of a base is. ``checkpoints``: nf4, int8, made of the merged weights. The log-probabilities of
    an evaluation are not counted: they are not written where there is no room for them.
    """
    missing, converts = _to_make(name, folder, (*quantizations, *compared), measured_unquantized)
    level = _Level()
    if builds_tools:
        level.write("building llama.cpp", TOOLS_BYTES)
    merged = unquantized = 0
    absent = _absent_checkpoints(folder, checkpoints)
    for shard in plan["shards"] if converts or absent else ():
        if not (folder / "merged" / shard["file"]).exists():
            size = shard_bytes(shard["tensors"])
            merged += size
            level.write(f"merging {shard['file']}", size)
    for precision in absent:
        level.write(f"quantizing to {precision} with bitsandbytes", checkpoint_bytes(plan, precision))
    if converts:
        unquantized = unquantized_bytes(plan)
        level.write("converting to GGUF", unquantized)
    level.free(0 if keep_merged else merged)
    in_store = 0
    for kind in quantizations:
        size = quantized_bytes(plan, kind)
        if kind in missing:
            level.write(f"quantizing to {kind}", size)
        if kind not in missing and registration.made(_marker(folder, kind)):
            continue
        if registration.way == "copy":
            in_store += size
        elif registration.way == "server":
            level.write(f"registering {kind} on the server", SERVER_COPIES * size)
            level.free((SERVER_COPIES - 1) * size)
    for kind in compared:
        if kind in missing and kind not in quantizations:
            level.write(f"quantizing to {kind}", quantized_bytes(plan, kind))
    level.free(0 if keep_unquantized else unquantized)
    return DiskPeak(level.peak, level.step, level.now, in_store)


def adapter_peak(
    plan: Mapping[str, Any], folder: Path, quantizations: Sequence[str], registration: Registration
) -> DiskPeak:
    """Return the peak of building a model that is served as an adapter; its base's GGUFs are those of another model.

    A server or a store on another filesystem gets a copy of these; for several adapters on one base it is counted for each.
    """
    level, in_store, size = _Level(), 0, converted_adapter_bytes(plan)
    if not (folder / "gguf" / f"{folder.name}.adapter.gguf").exists():
        level.write("converting the adapter", 2 * size)
        level.free(size)
    for kind in quantizations:
        if registration.made(_marker(folder, kind)):
            continue
        size = quantized_bytes(plan, kind)
        if registration.way == "copy":
            in_store += size
        elif registration.way == "server":
            level.write(f"registering {kind} on the server", SERVER_COPIES * size)
            level.free((SERVER_COPIES - 1) * size)
    return DiskPeak(level.peak, level.step, level.now, in_store)


def added_by_others(
    others: Iterable[Mapping[str, Any]],
    results: Path,
    registration: Registration,
    *,
    keep_merged: bool,
    keep_unquantized: bool,
) -> tuple[int, int]:
    """Return (bytes, bytes in a store on another filesystem) that models which are built before will still add and keep.

    ``others``: of each its name, base_bytes (of the weight files of its base, taken for 16-bit floats; 0 if a rule makes the
    base and has not yet) and quantizations; may have ``compared``, ``measured_unquantized`` and ``checkpoints``, as disk_peak
    takes them. An estimate: their weights are not read here.
    """
    added = in_store = 0
    for other in others:
        name, weights = other["name"], other["base_bytes"]
        folder = results / name
        compared = [kind for kind in other.get("compared", []) if kind not in other["quantizations"]]
        missing, converts = _to_make(
            name, folder, (*other["quantizations"], *compared), other.get("measured_unquantized", False)
        )
        if not weights:
            added += MADE_HERE_BYTES if converts else 0
            continue
        absent = _absent_checkpoints(folder, other.get("checkpoints", ()))
        added += sum(round(weights * _CHECKPOINT_SHARE[precision]) for precision in absent)
        # What another one has only for a while (files that are not kept, copies while it is registered) is gone, or the model
        # that is looked at does not begin before it is.
        if (converts or absent) and keep_merged:
            there = sum(file.stat().st_size for file in (folder / "merged").glob("*.safetensors"))
            added += max(0, weights - there)
        if converts and keep_unquantized:
            added += weights + METADATA_BYTES
        for kind in (*other["quantizations"], *compared):
            size = round(weights / 2 * QUANTIZATION_TYPES[kind].bits_per_weight / 8) + METADATA_BYTES
            if kind in missing:
                added += size
            if kind in compared or (kind not in missing and registration.made(_marker(folder, kind))):
                continue
            if registration.way == "copy":
                in_store += size
            elif registration.way == "server":
                added += size
    return added, in_store


def _to_make(
    name: str, folder: Path, quantizations: Sequence[str], measured_unquantized: bool
) -> tuple[list[str], bool]:
    """Return the quantizations that are missing, and whether the model is merged and converted.

    An unquantized GGUF that is measured is made once more only if nothing says that it has been measured.
    """
    gguf = folder / "gguf"
    missing = [kind for kind in quantizations if not (gguf / f"{name}.{kind}.gguf").exists()]
    unquantized = gguf / f"{name}.unquantized"
    wanted = bool(missing) or (measured_unquantized and not unquantized.with_name(f"{unquantized.name}.json").exists())
    return missing, wanted and not unquantized.with_name(f"{unquantized.name}.gguf").exists()


def _absent_checkpoints(folder: Path, checkpoints: Sequence[str]) -> list[str]:
    return [precision for precision in checkpoints if not (folder / "bitsandbytes" / f"{precision}.json").exists()]


def _marker(folder: Path, quantization: str) -> Path:
    return folder / "ollama" / quantization / "registered.json"


class _Level:
    """Bytes written so far, and the most there were."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.step = "nothing is written"

    def write(self, step: str, size: int) -> None:
        self.now += size
        if self.now > self.peak:
            self.peak, self.step = self.now, step

    def free(self, size: int) -> None:
        self.now -= size
