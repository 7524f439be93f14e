"""What huggingface_hub's cache knows about a repository without the hub: a commit, its files, and their digests."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError, RevisionResolutionError

from ollamake.hub_cache import repository_folder
from ollamake.hub_content import Content, content_named
from ollamake.hub_requests import RepositoryState

_COMMIT = re.compile(r"[0-9a-f]{40}")


def cached_state(repo_id: str, revision: str) -> RepositoryState | None:
    """Return the commit that a revision was when it was last downloaded, and its files; None if the cache has none.

    Contents are those of the files that were downloaded. Where the cache has the list of all files (it has after
    snapshot_download) the others stand there with None.
    """
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = HfApi().resolve_revision(repo_id, revision=revision, local_files_only=True).resolved
        except RevisionResolutionError:
            return None
    if not _COMMIT.fullmatch(commit):
        return None
    try:
        listed = [file.path for file in get_cached_repo_tree(repo_id, revision=commit)]
    except CachedRepoTreeNotFoundError:
        listed = []
    contents = dict.fromkeys(listed) | _linked(repository_folder(repo_id) / "snapshots" / commit)
    return RepositoryState(commit, "", contents) if contents else None


def _linked(snapshot: Path) -> dict[str, Content | None]:
    """Return what a snapshot links to. Blobs are named by their digests; what is no link to one is left out."""
    contents: dict[str, Content | None] = {}
    for path in sorted(snapshot.rglob("*")):
        name = path.relative_to(snapshot).as_posix()
        try:
            contents[name] = content_named(path.readlink().name, path.stat().st_size)
        except (OSError, ValueError):
            # A folder or a file of its own, a link to nothing, or a blob that something else than a digest names.
            continue
    return contents
