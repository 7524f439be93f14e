"""The cache of huggingface_hub (HF_HUB_CACHE), which is only read: nothing in it is written, moved or deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from ollamake.hub_content import Content

log = logging.getLogger("ollamake")


def repository_folder(repo_id: str) -> Path:
    """Return where the cache has a model's repository, if it has it."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def cached_file(repo_id: str, name: str, commit: str) -> Path | None:
    """Return a file of a commit as the cache has it, None if it does not."""
    path = try_to_load_from_cache(repo_id, name, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    return Path(path) if isinstance(path, str) else None


def blob_of(repo_id: str, content: Content) -> Path | None:
    """Return the blob that is named by a digest, whatever snapshot it belongs to; not read, only of the right size.

    A blob of another size is damaged, which is logged; then None is returned as well.
    """
    path = repository_folder(repo_id) / "blobs" / content.digest
    try:
        blob = path.resolve(strict=True)
        size = blob.stat().st_size
    except OSError:
        # Not there, or a link to a blob that many repositories share and that is no longer there.
        return None
    if size != content.size:
        _warn(path, f"it has {size} bytes, not {content.size}")
        return None
    return blob


def whole_blob_of(repo_id: str, content: Content, advance: Callable[[int], object] | None = None) -> Path | None:
    """Return the blob that is named by a digest, if it also has that digest: it is read, and ``advance`` told of it.

    One that has not, or cannot be read, is logged.
    """
    blob = blob_of(repo_id, content)
    if blob is None:
        return None
    try:
        fault = content.fault(blob, advance)
    except OSError as error:
        fault = f"it cannot be read ({error.strerror})"
    if fault is not None:
        _warn(blob, fault)
        return None
    return blob


def _warn(blob: Path, fault: str) -> None:
    log.warning(
        "warning: %s in the cache of huggingface_hub is damaged: %s. It is left as it is and not used; other programs may use"
        " it: delete it, and it is downloaded again where it is needed.",
        blob,
        fault,
    )
