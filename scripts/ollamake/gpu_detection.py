"""The GPUs of this machine, as the tools of their makers tell: nvidia-smi, rocm-smi or amd-smi, sysctl.

Only the GPUs of one maker are taken (NVIDIA's, else AMD's, else Apple's), as llama.cpp and Ollama run one of those
backends, and of those only what the environment leaves visible to a process started here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

log = logging.getLogger("ollamake")

TIMEOUT = 10.0
"""Seconds that a tool may take. A driver that hangs would otherwise hold up every run."""

SMALLEST_GPU_MIB = 1024
"""What integrated GPUs set aside (64 to 512 MiB) holds no model, and llama.cpp would not use it beside a real one."""

_SELECTS_NONE = {"", "-1", "NoDevFiles"}
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU; NoDevFiles is Slurm's for a job without one."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and its memory in GiB (2**30 bytes); with unified memory the part of the RAM that it may take."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class _Device:
    """A GPU as CUDA names it: ``keys`` are its index and UUID. ``part``: it is a MIG device, a part of a GPU."""

    gpu: Gpu
    keys: tuple[str, ...]
    part: bool = False


def detect_gpus(ram_gib: float | None) -> tuple[tuple[Gpu, ...], bool]:
    """Return the GPUs of this machine, and whether they work in the RAM."""
    gpus, unified = _nvidia_gpus(ram_gib)
    if not gpus:
        gpus, unified = _amd_gpus(), False
    if not gpus and ram_gib is not None:
        gpus = _apple_gpus(ram_gib)
        unified = bool(gpus)
    for gpu in gpus:
        if gpu.memory_gib * 1024 < SMALLEST_GPU_MIB:
            log.info(
                "%s has %.0f MiB of its own memory, too little for a model: not used", gpu.name, gpu.memory_gib * 1024
            )
    return tuple(gpu for gpu in gpus if gpu.memory_gib * 1024 >= SMALLEST_GPU_MIB), unified


def _nvidia_gpus(ram_gib: float | None) -> tuple[list[Gpu], bool]:
    """Return NVIDIA's GPUs that CUDA shows to a process started here, and whether their memory is the RAM.

    nvidia-smi counts in MiB. On GPUs that work in the RAM (GB10, Jetson) it prints [N/A], and llama.cpp takes the RAM
    (docs.nvidia.com/dgx/dgx-spark/known-issues.html). A container that was given a MIG device only may not ask for the
    memory of the whole GPU.
    """
    printed = ask("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    if printed is None:
        return [], False
    rows = [_NVIDIA_ROW.fullmatch(line.strip()) for line in printed.splitlines()]
    if not rows or None in rows:
        report("nvidia-smi", "printed no list of names and MiB", printed)
        return [], False
    sizes = [_nvidia_mib(row[2]) for row in rows if row]
    unified = all(size == 0 for size in sizes)
    if unified and ram_gib is None:
        report("nvidia-smi", "names a GPU that works in the RAM, the size of which is unknown", printed)
        return [], False
    memory = [ram_gib or 0.0 if unified else mib / 1024 for mib in sizes]
    gpus = [Gpu(row[1], gib) for row, gib in zip((row for row in rows if row), memory, strict=True)]
    return [device.gpu for device in _visible(_cuda_devices(gpus), "CUDA_VISIBLE_DEVICES")], unified


_NVIDIA_ROW = re.compile(r"(.+?)\s*,\s*(\d+|\[?(?:N/A|Not Supported|Insufficient Permissions)\]?)")


def _nvidia_mib(shown: str) -> float:
    """Return MiB as nvidia-smi shows them, 0 for a GPU that has no memory of its own, NaN for one that may not be asked."""
    if shown.isdecimal():
        return int(shown)
    return math.nan if "Permissions" in shown else 0


def _cuda_devices(gpus: list[Gpu]) -> list[_Device]:
    """Return the GPUs with what CUDA_VISIBLE_DEVICES may call them, and the MIG devices in place of a GPU divided so.

    The index is nvidia-smi's, in the order of the PCI bus. CUDA's own default order begins with the fastest GPU and differs
    only between unlike GPUs; CUDA_DEVICE_ORDER=PCI_BUS_ID makes them one.
    """
    listed = ask("nvidia-smi", "-L", counts_as="GPUs are taken as not divided by MIG") or ""
    uuids: dict[int, str] = {}
    parts: dict[int, list[tuple[str, str]]] = {}
    index = -1
    for line in listed.splitlines():
        if found := re.match(r"GPU (\d+): .*\(UUID: ([^)]+)\)", line):
            index = int(found[1])
            uuids[index] = found[2]
        elif found := re.match(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: ([^)]+)\)", line):
            parts.setdefault(index, []).append((found[1], found[2]))
    sizes = _mig_sizes() if parts else {}
    devices = []
    for index, gpu in enumerate(gpus):
        keys = (str(index), uuids.get(index, ""))
        if index not in parts and not math.isnan(gpu.memory_gib):
            devices.append(_Device(gpu, keys))
            continue
        if not sizes.get(index) or len(sizes[index]) != len(parts.get(index, [])):
            log.warning("nvidia-smi does not tell the memory of GPU %d or of its MIG devices: it counts as none", index)
            continue
        for part, ((profile, uuid), mib) in enumerate(zip(parts[index], sizes[index], strict=True)):
            own = Gpu(f"{gpu.name} MIG {profile}", mib / 1024)
            devices.append(_Device(own, (*keys, uuid) if part == 0 else (uuid,), part=True))
    return devices


def _mig_sizes() -> dict[int, list[int]]:
    """Return the MiB of the MIG devices of each GPU, in the order of nvidia-smi -L.

    The profile's name will not do: 1g.5gb has 4.75 GiB, 3g.20gb 19.6 GiB (NVIDIA's MIG user guide).
    """
    printed = ask("nvidia-smi", "-q", "-x", counts_as="the GPUs divided by MIG count as none")
    try:
        gpus = ElementTree.fromstring(printed or "<none/>").findall("gpu")
        totals = [[part.findtext("fb_memory_usage/total", "") for part in gpu.iter("mig_device")] for gpu in gpus]
        return {index: [int(total.split()[0]) for total in own] for index, own in enumerate(totals)}
    except (ElementTree.ParseError, ValueError, IndexError):
        return {}


def _visible(devices: list[_Device], variable: str) -> list[_Device]:
    """Return the devices that an environment variable such as CUDA_VISIBLE_DEVICES leaves, in its order.

    As CUDA reads it (CUDA C++ Programming Guide, "CUDA Environment Variables"): indices or beginnings of UUIDs; nothing
    counts from the first one that does not exist. A process sees one MIG device at most (MIG User Guide).
    """
    setting = os.environ.get(variable)
    chosen = devices
    if setting is not None:
        chosen = []
        for token in (token.strip() for token in setting.split(",")):
            if token in _SELECTS_NONE:
                break
            uuid = token if "-" in token else None
            matches = [d for d in devices if token in d.keys or (uuid and any(key.startswith(uuid) for key in d.keys))]
            if not matches:
                log.warning(
                    "%s=%s: there is no GPU %s here, so it and those after it count as none", variable, setting, token
                )
                break
            chosen.append(matches[0])
    return [device for device in chosen if not device.part] or chosen[:1]


def _amd_gpus() -> list[Gpu]:
    """Return AMD's GPUs that HIP shows to a process started here, by rocm-smi (bytes) or its successor amd-smi ("MB": MiB).

    Memory of an APU beyond what its firmware sets aside is not counted.
    """
    gpus = _rocm_smi_gpus() or _amd_smi_gpus()
    # HIP counts among what ROCR_VISIBLE_DEVICES leaves, and heeds CUDA's variable where its own is not set.
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in os.environ else "CUDA_VISIBLE_DEVICES"
    for variable in ("ROCR_VISIBLE_DEVICES", hip):
        if gpus:
            devices = [_Device(gpu, (str(index),)) for index, gpu in enumerate(gpus)]
            gpus = [device.gpu for device in _visible(devices, variable)]
    return gpus


def _rocm_smi_gpus() -> list[Gpu]:
    printed = ask("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    if printed is None:
        return []
    gpus = []
    try:
        cards = {card: values for card, values in _json_in(printed).items() if re.fullmatch(r"card\d+", card)}
        for values in cards.values():
            told = {key.lower(): value for key, value in values.items()}
            series = told.get("card series") or told.get("card model") or "AMD GPU"
            # "Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]": the chip, and in brackets what people call it.
            bracketed = re.search(r"\[(.+)\]", series)
            gpus.append(Gpu(bracketed[1] if bracketed else series, int(told["vram total memory (b)"]) / 2**30))
    except _NOT_AS_KNOWN:
        gpus = []
    if not gpus:
        report("rocm-smi", "printed no JSON with names and memory", printed)
    return gpus


def _amd_smi_gpus() -> list[Gpu]:
    printed = ask("amd-smi", "static", "--asic", "--vram", "--json")
    if printed is None:
        return []
    try:
        content = _json_in(printed)
        entries = content["gpu_data"] if isinstance(content, dict) else content
        return [Gpu(entry["asic"]["market_name"], int(entry["vram"]["size"]["value"]) / 1024) for entry in entries]
    except _NOT_AS_KNOWN:
        report("amd-smi", "printed no JSON with names and memory", printed)
        return []


_NOT_AS_KNOWN = (ValueError, KeyError, TypeError, AttributeError)


def _json_in(printed: str) -> Any:
    """Return the JSON after the warnings that AMD's tools print above it, such as that of a GPU in a low-power state."""
    lines = printed.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith(("{", "["))), 0)
    return json.loads("\n".join(lines[start:]))


def _apple_gpus(ram_gib: float) -> list[Gpu]:
    """Return the GPU of Apple silicon with the part of the RAM that Metal lets it take, by sysctl.

    Without a limit of its own (iogpu.wired_limit_mb, 0 if not set) that is about two thirds up to 36 GiB and three quarters
    above: llama.cpp logs recommendedMaxWorkingSetSize = 22906.50 MB (21.3 GiB) on 32 GiB. Newer macOS gives more (11.84 of
    16 GiB in llmfit pull request 754, 107.5 of 128 GiB in ds4 issue 890), so this is on the safe side.
    """
    if platform.system() != "Darwin":
        return []
    brand = (ask("sysctl", "-n", "machdep.cpu.brand_string") or "").strip()
    if "Apple" not in brand:  # under Rosetta it is "VirtualApple @ 2.50GHz"
        return []
    default = "macOS's default limit is assumed"
    # -i: macOS before 14 does not know the key and prints nothing, which is no fault.
    limit = (ask("sysctl", "-in", "iogpu.wired_limit_mb", counts_as=default) or "").strip() or "0"
    if not limit.isdecimal():
        report("sysctl", "printed no number of MiB for iogpu.wired_limit_mb", limit, default)
        limit = "0"
    share = 2 / 3 if ram_gib <= 36 else 3 / 4
    return [Gpu(brand, min(ram_gib, int(limit) / 1024) if int(limit) else ram_gib * share)]


def ask(program: str, *arguments: str, counts_as: str = "it counts as no GPU") -> str | None:
    """Return what a program prints; None if it is not on PATH, or fails or hangs, which is reported in one line."""
    path = shutil.which(program)
    if path is None:
        return None
    # Files, not pipes: a program in the driver's uninterruptible sleep survives SIGKILL and would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            report(program, f"cannot be run ({error.strerror})", "", counts_as)
            return None
        try:
            code = process.wait(TIMEOUT)
            ending = f"ended with code {code}" if code else None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            ending = f"did not end within {TIMEOUT:g} s"
        out.seek(0)
        err.seek(0)
        printed, errors = (stream.read().decode(errors="replace") for stream in (out, err))
    if ending is None:
        return printed
    report(program, ending, f"{errors} {printed}", counts_as)
    return None


def report(program: str, fault: str, printed: str, counts_as: str = "it counts as no GPU") -> None:
    """Warn in one line that a program did not do what it is for, what it printed, and what follows."""
    shown = " ".join(printed.split())
    shown = f"{shown[:200]}..." if len(shown) > 200 else shown or "nothing"
    log.warning(
        "%s %s: %s (printed: %s). If that is wrong, set `hardware` in the configuration.",
        program,
        fault,
        counts_as,
        shown,
    )
