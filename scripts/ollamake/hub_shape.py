"""The shape of a model on the Hugging Face hub: config.json and the headers of its weights, never a weight.

A header is read by two range requests, of its length (8 bytes) and of as many bytes as that says: some hundred kB for a
7B model. Files in the local cache of huggingface_hub are read from there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionResolutionError

from ollamake.configuration_faults import nearest
from ollamake.errors import OllamakeError
from ollamake.hub_cache import cached_file
from ollamake.hub_faults import PUBLIC_HUB, HubUnreachable
from ollamake.hub_files import (
    CONFIG,
    INDEX,
    MOST_OF_CONFIG,
    MOST_OF_INDEX,
    SINGLE,
    parse_reference,
    require_base,
    shards_of,
)
from ollamake.hub_headers import for_each_shard, header_on_hub
from ollamake.hub_requests import HubRepository, Patience
from ollamake.json_object import parse_json
from ollamake.safetensors_header import listed_tensors, read_header
from ollamake.shape import MAX_TENSORS, Shape, cached_names, shipped_names

log = logging.getLogger("ollamake")


_Tensor = tuple[str, str, tuple[int, ...]]


def fetch_shape(
    reference: str,
    *,
    shipped: Path,
    cached: Path,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> Shape:
    """Return the shape of a model on the hub, or in huggingface_hub's cache where the hub does not answer.

    ``reference`` is org/name or org/name@revision; ``shipped`` and ``cached`` are the folders whose shapes are named when
    neither has it; ``endpoint`` is HF_ENDPOINT's unless given. The source names the commit on the public hub.
    Raises OllamakeError.
    """
    repo_id, revision = parse_reference(reference)
    hub = HubRepository(repo_id, endpoint=endpoint, patience=patience)
    try:
        commit, files = hub.commit_and_files(revision)
        require_base(repo_id, commit, files)
        shape = _Snapshot(repo_id, commit, hub, files).shape()
        log.info("%s: %.0f kB read for %d tensors", repo_id, hub.received / 1000, len(shape.tensors))
    except HubUnreachable as error:
        try:
            commit = HfApi().resolve_revision(repo_id, revision=revision, local_files_only=True).resolved
            shape = _Snapshot(repo_id, commit, None, frozenset()).shape()
        except (_NotCached, RevisionResolutionError):
            raise OllamakeError(_offline_message(reference, str(error), shipped, cached)) from error
        log.info("%s: %s; read from the cache of downloads", repo_id, error)
    return shape


class _NotCached(Exception):
    """A file is neither in the cache nor to be fetched."""


class _Snapshot:
    """The files of one commit: those in the cache from there, all others from the hub."""

    def __init__(self, repo_id: str, commit: str, hub: HubRepository | None, files: frozenset[str]) -> None:
        self._repo_id = repo_id
        self._commit = commit
        self._hub = hub
        self._files = files

    def shape(self) -> Shape:
        """Return the shape; ``_NotCached`` without a hub if a file is missing."""
        config = self._object(CONFIG, MOST_OF_CONFIG)
        weight_map = self._weight_map() if self._has(INDEX) else None
        shards = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
        found: dict[str, tuple[str, _Tensor]] = {}
        for shard, tensors in for_each_shard(self._hub, shards, self._tensors).items():
            for tensor in tensors:
                if tensor[0] in found:
                    raise self._damaged(f"tensor {tensor[0]!r} stands in {found[tensor[0]][0]} and in {shard}")
                found[tensor[0]] = shard, tensor
        if weight_map is not None:
            self._compare(weight_map, {name: shard for name, (shard, _) in found.items()})
        if not 0 < len(found) <= MAX_TENSORS:
            raise self._damaged(f"its weights have {len(found)} tensors")
        source = f"{PUBLIC_HUB}/{self._repo_id}/tree/{self._commit}"
        return Shape(self._repo_id, source, config, tuple(sorted(tensor for _, tensor in found.values())), None)

    def _cached(self, name: str) -> Path | None:
        return cached_file(self._repo_id, name, self._commit)

    def _has(self, name: str) -> bool:
        return name in self._files or self._cached(name) is not None

    def _object(self, name: str, most: int) -> dict[str, Any]:
        path = self._cached(name)
        try:
            if path is not None:
                content = path.read_bytes()
            elif self._hub is not None:
                content = self._hub.file(name, self._commit, most)
            else:
                raise _NotCached(name)
            value = parse_json(content)
        except OSError as error:
            raise OllamakeError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self._damaged(f"{name} is not JSON ({error})", path) from error
        if not isinstance(value, dict):
            raise self._damaged(f"{name} is not a JSON object", path)
        return value

    def _weight_map(self) -> dict[str, str]:
        """Return tensor -> shard, as the index has it."""
        weight_map: dict[str, str] = self._object(INDEX, MOST_OF_INDEX).get("weight_map")
        try:
            shards_of(weight_map, self._files if self._hub else None)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        return weight_map

    def _tensors(self, shard: str) -> list[_Tensor]:
        """Return the tensors in a shard's header."""
        path = self._cached(shard)
        if path is not None:
            return [(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(path).tensors]
        if self._hub is None:
            raise _NotCached(shard)
        try:
            size, content = header_on_hub(self._hub, self._commit, shard)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        try:
            return [(tensor.name, tensor.dtype, tensor.shape) for tensor in listed_tensors(size, content)]
        except ValueError as error:
            raise self._damaged(f"the header of {shard} is not one ({error})") from error

    def _compare(self, weight_map: dict[str, str], found: dict[str, str]) -> None:
        differing = sorted(name for name in weight_map.keys() | found.keys() if weight_map.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise self._damaged(
                f"{INDEX} and the shards disagree on {len(differing)} tensors; the index has {name!r} in"
                f" {weight_map.get(name, 'no shard')}, found in {found.get(name, 'no shard')}"
            )

    def _damaged(self, what: str, path: Path | None = None) -> OllamakeError:
        mend = f"Delete {path} to have it fetched again." if path else "Choose another revision (org/name@revision)."
        return OllamakeError(f"{self._repo_id} at commit {self._commit[:12]} cannot be used: {what}. {mend}")


def _offline_message(reference: str, reason: str, shipped: Path, cached: Path) -> str:
    here = (("with ollamake", shipped_names(shipped)), ("fetched before", cached_names(cached)))
    shapes = "; ".join(f"{where}: {', '.join(names) or 'none'}" for where, names in here)
    close = nearest(reference.partition("@")[0], [name for _, names in here for name in names], count=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return (
        f"{reference}: there is no such folder here (looked from {Path.cwd()}), and of the hub: {reason.rstrip('.')}. The"
        f" local cache of downloads does not have all of the model either.{meant} Shapes that are here: {shapes}."
        " Give one of these or a model's folder as `base`, or run again when the hub answers."
    )
