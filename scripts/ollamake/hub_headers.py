"""Headers of a model's shards on the hub, by two range requests each, and headers.json, which has them before the shards come.

headers.json: shard -> {"size": bytes of the whole file, "header": its JSON header as it stands there}. Read by
:mod:`ollamake.awaited_shards`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from ollamake.errors import OllamakeError
from ollamake.hub_cache import cached_file
from ollamake.hub_faults import HubUnreachable, RevisionGone
from ollamake.hub_offline import not_here, revision_gone
from ollamake.hub_requests import HubRepository, Patience
from ollamake.progress import progress_bar
from ollamake.safetensors_header import MAX_HEADER, parse_header, read_raw_header

log = logging.getLogger("ollamake")

_THREADS = 8
_SHARDS_WITHOUT_PROGRESS = 10

_Read = TypeVar("_Read")


def fetch_headers(
    repo_id: str,
    commit: str,
    weights: Sequence[str],
    folder: Path,
    *,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> dict[str, dict[str, object]]:
    """Return the content of headers.json for shards of one commit.

    A shard that is in ``folder``, or in huggingface_hub's cache, is read from there. Raises OllamakeError.
    """
    if other := [name for name in weights if not name.endswith(".safetensors")]:
        raise OllamakeError(f"{repo_id}: only .safetensors have a header that can be read alone, not {other[0]}.")
    hub = HubRepository(repo_id, endpoint=endpoint, patience=patience)

    def read(shard: str) -> tuple[int, bytes]:
        for path in (folder / shard, cached_file(repo_id, shard, commit)):
            if path is not None and path.is_file():
                try:
                    size, raw = read_raw_header(path)
                    parse_header(path, size, raw)
                except OllamakeError as error:
                    log.warning("warning: %s The header is read from the hub.", error)
                else:
                    return size, raw
        size, raw = header_on_hub(hub, commit, shard)
        parse_header(Path(repo_id, shard), size, raw)
        return size, raw

    try:
        found = for_each_shard(hub, weights, read)
    except ValueError as error:
        raise OllamakeError(
            f"{repo_id} at commit {commit[:12]} cannot be used: {error}. Choose another revision (org/name@revision)."
        ) from error
    except RevisionGone as error:
        raise revision_gone(repo_id, commit) from error
    except HubUnreachable as error:
        raise not_here(f"{repo_id} at commit {commit[:12]}", "the headers of its weights", error) from error
    return {shard: {"size": size, "header": raw.decode("utf-8")} for shard, (size, raw) in found.items()}


def header_on_hub(hub: HubRepository, commit: str, shard: str) -> tuple[int, bytes]:
    """Return the bytes of a shard and its header, which is not parsed. Raises ValueError if it has none."""
    length_bytes, size = hub.part(shard, commit, 0, 8)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise ValueError(
            f"{shard} is no safetensors file: by its first bytes the header has {length} bytes, the file has {size}, and"
            f" a header may have {MAX_HEADER // 1_000_000} MB"
        )
    header, again = hub.part(shard, commit, 8, length)
    if again != size or len(header) != length:
        raise ValueError(f"{shard} has {size} bytes by one answer and {again} by the next, of which {len(header)} came")
    return size, header


def for_each_shard(hub: HubRepository | None, shards: Sequence[str], read: Callable[[str], _Read]) -> dict[str, _Read]:
    """Return what ``read`` returns for each of the shards, several of which are asked for at once.

    The first error ends all of it.
    """
    found: dict[str, _Read] = {}
    shown = len(shards) > _SHARDS_WITHOUT_PROGRESS
    pool = ThreadPoolExecutor(_THREADS)
    try:
        asked = {pool.submit(read, shard): shard for shard in shards}
        name = f" of {hub.repo_id}" if hub else ""
        bar = progress_bar(len(shards), f"headers{name}", unit=" shards") if shown else None
        with bar or nullcontext():
            for done in as_completed(asked):
                found[asked[done]] = done.result()
                if bar is not None:
                    bar.update()
    finally:
        # After an error nobody needs the rest.
        if hub and len(found) < len(shards):
            hub.close()
        pool.shutdown(cancel_futures=True)
    return {shard: found[shard] for shard in shards}
