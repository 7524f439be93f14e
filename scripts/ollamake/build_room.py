"""Whether a whole build has room, on the disk at its peak and in memory in its largest job: asked before it starts."""

from __future__ import annotations

from pathlib import Path

from ollamake.disk_peak import DiskPeak
from ollamake.errors import OllamakeError
from ollamake.free_disk import MARGIN, free_bytes
from ollamake.free_memory import Memory
from ollamake.job_needs import Needs

GIB = 2**30


def require_disk(
    name: str, peak: DiskPeak, results: Path, *, store: Path | None = None, disk_gib: float | None = None
) -> int:
    """Return the bytes that a build may take; raise OllamakeError if its peak is above that.

    The filesystem of ``results`` must have the peak free with what other models add, and a margin; ``disk_gib`` (configuration
    key hardware.disk_gib) bounds it further. ``store`` must have room for what is copied to another filesystem. A model that
    writes nothing is not refused for the sake of others: each of them is checked itself.
    """
    free = max(0, free_bytes(results) - MARGIN)
    allowed = free if disk_gib is None else min(free, int(disk_gib * GIB))
    if peak.needed and peak.needed + peak.others > allowed:
        bound = f"{results.absolute()} has {free / 1e9:.2f} GB free (0.1 GB less than there is, which stay free)"
        if disk_gib is not None and allowed < free:
            bound = f"hardware.disk_gib allows {disk_gib:g} GiB ({allowed / 1e9:.2f} GB)"
        fewer = "or build fewer models with one configuration; " if peak.others else ""
        raise OllamakeError(
            f"not enough disk for building {name}: it needs {peak.needed / 1e9:.2f} GB at its peak ({peak.step}), of which"
            f" {max(0, peak.stays) / 1e9:.2f} GB stay{_others(peak.others, peak.needed)}; {bound}."
            " Set keep.merged and keep.unquantized to false, so that intermediate files go when they are used; or quantize to"
            f" fewer types at once; {fewer}or run with `--directory` on a larger disk"
            + ("; or raise hardware.disk_gib." if allowed < free else ".")
        )
    if store is not None and peak.in_store and peak.in_store + peak.others_in_store > free_bytes(store) - MARGIN:
        raise OllamakeError(
            f"not enough disk for the store of {name}: {store} lies on another filesystem than {results}, so the models are"
            f" copied ({peak.in_store / 1e9:.2f} GB{_others(peak.others_in_store, peak.in_store)}), and it has"
            f" {free_bytes(store) / 1e9:.2f} GB free (0.1 GB of which stay free). Set ollama.store to a folder on the disk of"
            " the results, where nothing is copied, or make room."
        )
    return allowed


def _others(others: int, own: int) -> str:
    """Return the words for what other models add to the bytes of this one."""
    if not others:
        return ""
    return f", and other models of this configuration: {others / 1e9:.2f} GB, together {(own + others) / 1e9:.2f} GB"


def require_memory(name: str, job: str, needs: Needs, memory: Memory | None) -> None:
    """Raise OllamakeError if the largest job of a build does not fit into the free memory; None (unknown) forbids nothing."""
    if memory is None or needs.mem_mb * 1e6 <= memory.free:
        return
    raise OllamakeError(
        f"not enough memory for building {name}: {job} needs {needs.mem_mb / 1e3:.1f} GB, and of"
        f" {memory.total / 1e9:.1f} GB (this machine's, or this job's or container's limit) {memory.free / 1e9:.1f} GB are"
        " free. Close what uses it and run with fewer `--cores`, so that no other job runs beside; or build on a machine with"
        " more memory, or on a cluster (README: profiles)."
    )
