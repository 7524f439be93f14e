"""How much of what a build needs of the Hugging Face hub has still to be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollamake.disk_peak import DiskPeak
from ollamake.hub_cache import blob_of
from ollamake.hub_content import content_of


def bytes_to_fetch(files: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the bytes that are neither here nor in the cache of huggingface_hub, which is linked; begun ones count as a rest.

    ``files``: path -> repo, size and digest, as PinnedSource.file has them.
    """
    left = 0
    for name, file in files.items():
        path = Path(name)
        content = content_of(file)
        if path.exists() or blob_of(file["repo"], content) is not None:
            continue
        begun = path.with_name(f"{path.name}.partial")
        left += max(0, content.size - (begun.stat().st_size if begun.exists() else 0))
    return left


def with_downloads(peak: DiskPeak, to_fetch: int, *, keeps: bool) -> DiskPeak:
    """Return the peak of a build that downloads first. Shards that are not kept go one by one; here they count to the end."""
    if not to_fetch:
        return peak
    return replace(peak, needed=peak.needed + to_fetch, stays=peak.stays + (to_fetch if keeps else 0))
