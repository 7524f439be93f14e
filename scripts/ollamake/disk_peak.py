"""The most disk that a build takes while it runs: its steps in their order, with intermediate files going when they are used.

Files appear under a temporary name in their own folder and are renamed, so nothing is ever there twice; what is there
already is not written again, and not taken to go away. Several quantizations may run side by side, and each needs the
unquantized GGUF: it goes after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.job_needs import quantized_bytes, shard_bytes, unquantized_bytes

SERVER_COPIES = 3
"""Copies of a GGUF that Ollama has while it creates a model, from 0.30 on: the upload, the rewritten file and the layer."""

TOOLS_BYTES = 300_000_000
"""llama.cpp's source, what is compiled of it and its programs (151 MB with two programs), and its archive."""


REGISTRATIONS = ("shared", "copy", "server", "elsewhere")
"""Where a model's weights go when it is registered: to a store on the same filesystem, which shares blocks or the file
(shared) or on another (copy); to a server of this machine, whose models are taken to lie on the same disk (server), or of
another machine (elsewhere)."""


@dataclass(frozen=True)
class DiskPeak:
    """Bytes above what is there now. ``needed`` at the most, at ``step``; ``stays`` when the build is finished.

    ``in_store``: bytes that go to a store on another filesystem.
    """

    needed: int
    step: str
    stays: int
    in_store: int


def disk_peak(
    plan: Mapping[str, Any],
    name: str,
    folder: Path,
    quantizations: Sequence[str],
    registration: str,
    *,
    keep_merged: bool,
    keep_unquantized: bool,
    builds_tools: bool = False,
) -> DiskPeak:
    """Return the peak of building a model in ``folder`` (results/MODEL), from its parsed merge_plan.json.

    ``registration`` is one of REGISTRATIONS; a model that has its marker is not registered again. ``builds_tools``: llama.cpp
    is fetched and compiled first.
    """
    gguf = folder / "gguf"
    missing = [kind for kind in quantizations if not (gguf / f"{name}.{kind}.gguf").exists()]
    converts = bool(missing) and not (gguf / f"{name}.unquantized.gguf").exists()
    level = _Level()
    if builds_tools:
        level.write("building llama.cpp", TOOLS_BYTES)
    merged = unquantized = 0
    if converts:
        for shard in plan["shards"]:
            if not (folder / "merged" / shard["file"]).exists():
                size = shard_bytes(shard["tensors"])
                merged += size
                level.write(f"merging {shard['file']}", size)
        unquantized = unquantized_bytes(plan)
        level.write("converting to GGUF", unquantized)
        level.free(0 if keep_merged else merged)
    in_store = 0
    for kind in quantizations:
        size = quantized_bytes(plan, kind)
        if kind in missing:
            level.write(f"quantizing to {kind}", size)
        if (folder / "ollama" / kind / "registered.json").exists() and kind not in missing:
            continue
        if registration == "copy":
            in_store += size
        elif registration == "server":
            level.write(f"registering {kind} on the server", SERVER_COPIES * size)
            level.free((SERVER_COPIES - 1) * size)
    level.free(0 if keep_unquantized else unquantized)
    return DiskPeak(level.peak, level.step, level.now, in_store)


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
