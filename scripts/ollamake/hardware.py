"""The memory a model may take: of the GPUs and of the machine, as configured or as detected.

Total memory, not free memory: a plan should not depend on what runs at the moment.
"""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.gpu_detection import Gpu, ask, detect_gpus, report

GPU_OVERHEAD_MIB = 500
"""MiB on each GPU outside llama.cpp's own accounting: CUDA's context and kernels and cuBLAS (309 MiB between the sum of
buffers and nvidia-smi in ollama issue 6160; Ollama itself reserves 457 MiB in ml/device.go)."""

SYSTEM_MIB = 2048
"""MiB of RAM left to the operating system and to the server's own needs."""

LARGEST_GPU_GIB = 2048
LARGEST_RAM_GIB = 65536
"""More than any machine has: a configured figure above it is in another unit."""


@dataclass(frozen=True)
class Hardware:
    """GPUs that a model may be spread over, and RAM in GiB (None if unknown).

    ``unified``: the GPU works in the RAM (Apple silicon, NVIDIA GB10), so the two are one memory, not two.
    ``source``: "detected" if what decides was asked of this machine, and so is right only for a server here, else
    "configured": the GPUs, or without any the RAM.
    """

    gpus: tuple[Gpu, ...]
    ram_gib: float | None
    unified: bool
    source: str


@dataclass(frozen=True)
class Budget:
    """A place for a model. ``usable_mib``: what weights, KV cache and compute buffers together may take there."""

    name: str
    kind: str
    memory_gib: float
    usable_mib: int
    devices: int = 1
    """How many GPUs it is; each has compute buffers of its own."""


def detect_hardware() -> Hardware:
    """Return the GPUs and the RAM of this machine that a process started here may use.

    A tool that is not installed means no GPU of its maker; one that fails, hangs or prints something else is reported as a
    warning and counts as none too.
    """
    ram_gib = _ram_gib()
    gpus, unified = detect_gpus(ram_gib)
    return Hardware(gpus, ram_gib, unified, "detected")


def configured_hardware(settings: dict[str, Any] | None) -> Hardware:
    """Return the hardware of the configuration's ``hardware`` section; what is null or not there is detected.

    Raises OllamakeError, naming the key, for memory that cannot be meant: not a positive number, or too much for GiB.
    """
    settings = settings or {}
    ram_setting, gpu_settings = settings.get("ram_gib"), settings.get("gpus")
    ram_gib = _ram_gib() if ram_setting is None else _memory_gib(ram_setting, "hardware.ram_gib", LARGEST_RAM_GIB)
    if gpu_settings is None:
        gpus, unified = detect_gpus(ram_gib)
        return Hardware(gpus, ram_gib, unified, "detected")
    if not isinstance(gpu_settings, list):
        raise OllamakeError(
            f"hardware.gpus: {gpu_settings!r} is not a list. Write one entry a GPU, [{{name: RTX 4090, memory_gib: 24}}],"
            " or [] for none, or null to have them detected."
        )
    gpus = tuple(_configured_gpu(entry, f"hardware.gpus[{index}]") for index, entry in enumerate(gpu_settings))
    return Hardware(gpus, ram_gib, False, "configured" if gpus or ram_setting is not None else "detected")


def checked_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration's ``hardware`` section, checked but with nothing detected.

    Raises OllamakeError, naming the key, for memory that cannot be meant.
    """
    if settings["ram_gib"] is not None:
        _memory_gib(settings["ram_gib"], "hardware.ram_gib", LARGEST_RAM_GIB)
    gpus = settings["gpus"]
    if gpus is not None:
        gpus = [{"name": "GPU"} | entry for entry in gpus]
        for index, entry in enumerate(gpus):
            _configured_gpu(entry, f"hardware.gpus[{index}]")
    return settings | {"gpus": gpus}


def budgets(hardware: Hardware, margin_gib: float) -> list[Budget]:
    """Return the places for a model: each kind of GPU, all GPUs together if there are several, and the RAM.

    Usable is the memory less ``margin_gib`` (GiB, on every GPU, as llama.cpp's --fit-target) and less what llama.cpp does
    not account for. With unified memory there is one place, bounded by the RAM that the system leaves. GPUs
    of one name and different memory have it in the name. Raises OllamakeError for a margin that is no size.
    """
    if not (math.isfinite(margin_gib) and margin_gib >= 0):
        raise OllamakeError(f"plan.margin_gib: {margin_gib} is not a size. Give the GiB to be left free, 0 or more.")
    margin_mib = margin_gib * 1024
    in_ram = math.inf if hardware.ram_gib is None else hardware.ram_gib * 1024 - SYSTEM_MIB - margin_mib

    def usable(gpu: Gpu) -> int:
        free = gpu.memory_gib * 1024 - GPU_OVERHEAD_MIB - margin_mib
        return max(0, int(min(free, in_ram) if hardware.unified else free))

    counts = Counter(hardware.gpus)
    same_name = Counter(gpu.name for gpu in counts)
    labels = {gpu: gpu.name if same_name[gpu.name] == 1 else f"{gpu.name} {gpu.memory_gib:.4g} GiB" for gpu in counts}
    suffix = " (unified)" if hardware.unified else ""
    places = [Budget(labels[gpu] + suffix, "gpu", gpu.memory_gib, usable(gpu)) for gpu in counts]
    if len(hardware.gpus) > 1:
        name = " + ".join(f"{count} x {labels[gpu]}" if count > 1 else labels[gpu] for gpu, count in counts.items())
        memory = sum(gpu.memory_gib for gpu in hardware.gpus)
        together = sum(usable(gpu) for gpu in hardware.gpus)
        places.append(Budget(name + suffix, "gpu", memory, together, len(hardware.gpus)))
    if hardware.ram_gib is not None and not (hardware.unified and hardware.gpus):
        places.append(Budget("RAM", "ram", hardware.ram_gib, max(0, int(in_ram))))
    return places


def deciding(places: list[Budget]) -> Budget | None:
    """Return the place that a model is chosen for: all GPUs together, else RAM, else None if nothing is known.

    GPUs without usable memory do not decide where there is RAM.
    """
    gpus = [place for place in places if place.kind == "gpu"]
    largest = max(gpus, key=lambda place: (place.usable_mib, place.memory_gib), default=None)
    if largest is not None and largest.usable_mib > 0:
        return largest
    return next((place for place in places if place.kind == "ram"), largest)


def _configured_gpu(entry: Any, key: str) -> Gpu:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise OllamakeError(f"{key}: {entry!r} has no name. Write a GPU as {{name: RTX 4090, memory_gib: 24}}.")
    return Gpu(entry["name"].strip(), _memory_gib(entry.get("memory_gib"), f"{key}.memory_gib", LARGEST_GPU_GIB))


def _memory_gib(value: Any, key: str, largest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise OllamakeError(f"{key}: {value!r} is not a size. Give the memory in GiB, as a number above 0.")
    if value > largest:
        # MiB, KiB or bytes in place of GiB.
        unit = next((unit for unit in (2**10, 2**20, 2**30) if value <= largest * unit), None)
        advice = f"did you mean {value / unit:.4g}?" if unit else "give the memory in GiB."
        raise OllamakeError(f"{key}: {value} is absurd for GiB; {advice}")
    return float(value)


def _ram_gib() -> float | None:
    """Return the RAM of the machine in GiB, or less where a container or a cluster's job is given less."""
    if platform.system() == "Darwin":
        printed = ask("sysctl", "-n", "hw.memsize", counts_as="the RAM is unknown")
        if printed is not None and printed.strip().isdecimal():
            return int(printed) / 2**30
        if printed is not None:
            report("sysctl", "printed no number of bytes for hw.memsize", printed, "the RAM is unknown")
        return None
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limit = cgroup_limit()
    return (total if limit is None else min(total, limit)) / 2**30


def cgroup_limit(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the least memory limit in bytes of this process's control group and those above it, None without one.

    Version 2 has memory.max ("max" for none), version 1 memory.limit_in_bytes in the memory controller's tree (a number
    near 2**63 for none); man 7 cgroups. In a container the tree begins at the container's own group.
    """
    limits = []
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            # A folder that is not there, "max" and a file that may not be read: no limit known there.
            with suppress(OSError, ValueError):
                limits.append(int((top.joinpath(*parts[:depth]) / name).read_text()))
    return min((limit for limit in limits if limit < 2**60), default=None)
