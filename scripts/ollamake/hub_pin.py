"""What a model is made from on the hub, pinned: a commit, and the files of it with their sizes and digests.

A record of it (sources.json) is what all later jobs go by, so a branch that moves on changes nothing until it is pinned anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.hub_cache import blob_of, whole_blob_of
from ollamake.hub_content import Content, content_of
from ollamake.hub_faults import HubUnreachable
from ollamake.hub_files import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    MOST_OF_CONFIG,
    MOST_OF_INDEX,
    SINGLE,
    parse_reference,
    require_adapter,
    require_base,
    shards_of,
)
from ollamake.hub_offline import not_pinned
from ollamake.hub_requests import HubRepository, Patience, RepositoryState
from ollamake.hub_snapshot import cached_state
from ollamake.json_object import parse_json
from ollamake.pinned_sources import FORMAT
from ollamake.safetensors_header import read_header
from ollamake.source_files import small_files

log = logging.getLogger("ollamake")

_TREE_DIGITS = 12
_HASHED_AT_MOST = 100_000_000
"""Bytes: tenths of a second."""
_KEYS = {"reference", "repo", "revision", "commit", "folder", "weights", "files", "content", "config"}
_CONFIG = {"base": CONFIG, "adapter": ADAPTER_CONFIG}
"""What is read at once: whether one shard can be merged without the others depends on it."""


@dataclass(frozen=True)
class _Asked:
    """A repository's state, and where it is from: the hub, or huggingface_hub's cache."""

    reference: str
    repo_id: str
    state: RepositoryState
    hub: HubRepository | None
    reason: str = ""
    """Why it is from the cache."""

    def not_cached(self, missing: str) -> OllamakeError:
        """Return the error for what the cache does not have."""
        return not_pinned(self.reference, self.reason, missing)


def pin_sources(
    spec: Mapping[str, Any],
    former: Mapping[str, Any] | None,
    others: Sequence[Mapping[str, Any]] = (),
    *,
    renew: bool = False,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Return the content of sources.json for {"format", "base": reference or None, "adapters": [reference or None, ...]}.

    A source that ``former`` has of the same reference stays as it is, without a request, unless ``renew``; so does one that
    ``others`` have, the pins of other models: one name means one commit. Raises OllamakeError for a repository that is no
    base or adapter, or can neither be asked for nor is in the cache.
    """
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for pins in () if renew else (*others, *([] if former is None else [former])):
        known |= _by_reference(pins)
    asked: dict[str, _Asked] = {}

    def source(kind: str, reference: str | None) -> dict[str, Any] | None:
        if reference is None:
            return None
        if (kind, reference) in known:
            return known[kind, reference]
        if reference not in asked:
            asked[reference] = _ask(reference, renew, endpoint, patience)
        known[kind, reference] = _pin(kind, asked[reference])
        return known[kind, reference]

    return {
        "format": FORMAT,
        "base": source("base", spec["base"]),
        "adapters": [source("adapter", reference) for reference in spec["adapters"]],
    }


def read_former(path: Path) -> dict[str, Any] | None:
    """Return an earlier sources.json, None if there is none, or one that is damaged, which is logged."""
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
        if former["format"] != FORMAT:
            raise ValueError(f"its format is {former['format']!r}, not {FORMAT}")
        for source in [former["base"], *former["adapters"]]:
            if source is not None:
                _require_source(source)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OllamakeError) as error:
        log.warning("warning: %s is damaged (%s): its sources are pinned anew", path, error)
        return None
    return former


def _require_source(source: Mapping[str, Any]) -> None:
    """Raise ValueError, TypeError, KeyError or OllamakeError unless all is there that is read of a source."""
    if missing := sorted(_KEYS - source.keys()):
        raise ValueError(f"a source has no {', '.join(missing)}")
    contents = {name: content_of(record) for name, record in source["content"].items()}
    repo_id, revision = parse_reference(source["reference"])
    if (repo_id, revision) != (source["repo"], source["revision"]):
        raise ValueError(f"{source['reference']!r} is not {source['repo']!r} at {source['revision']!r}")
    if source["folder"] != _folder(repo_id, contents) or sorted([*source["weights"], *source["files"]]) != sorted(
        contents
    ):
        raise ValueError(f"the files of {source['reference']} are not those of {source['folder']!r}")


def _by_reference(former: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    sources = [("base", former["base"]), *(("adapter", source) for source in former["adapters"])]
    return {(kind, source["reference"]): source for kind, source in sources if source is not None}


def _ask(reference: str, renew: bool, endpoint: str | None, patience: Patience | None) -> _Asked:
    repo_id, revision = parse_reference(reference)
    hub = HubRepository(repo_id, endpoint=endpoint, patience=patience)
    try:
        return _Asked(reference, repo_id, hub.state(revision), hub)
    except HubUnreachable as error:
        if renew:
            # The cache may be older than what is pinned.
            raise not_pinned(reference, str(error), None) from error
        state = cached_state(repo_id, revision)
        if state is None:
            raise not_pinned(reference, str(error), f"{revision} of it") from error
        log.info("%s: %s; pinned as it is in the cache of huggingface_hub", repo_id, error)
        return _Asked(reference, repo_id, state, None, str(error))


def _pin(kind: str, asked: _Asked) -> dict[str, Any]:
    """Return a source."""
    repo_id, revision = parse_reference(asked.reference)
    state, commit = asked.state, asked.state.commit
    try:
        single = [SINGLE] if kind == "base" else [require_adapter(repo_id, commit, state.contents)]
        if kind == "base":
            require_base(repo_id, commit, state.contents)
    except OllamakeError as error:
        if asked.hub is None:
            # Perhaps only a part of it was downloaded.
            raise asked.not_cached(f"all of it (of its files: {', '.join(sorted(state.contents)[:3])})") from error
        raise
    weights = _shards(asked) if kind == "base" and INDEX in state.contents else single
    files = small_files(kind, weights, state.contents.__contains__)
    contents = {name: _content(asked, name) for name in (*weights, *files)}
    cached = [name for name, content in contents.items() if blob_of(repo_id, content) is not None]
    if asked.hub is None:
        _require_whole(asked, contents)
    _say(kind, asked.reference, state, weights, contents, sum(contents[name].size for name in cached))
    return {
        "reference": asked.reference,
        "repo": repo_id,
        "revision": revision,
        "commit": commit,
        "folder": _folder(repo_id, contents),
        "weights": weights,
        "files": files,
        "content": {name: content.record() for name, content in contents.items()},
        "config": _config(asked, _CONFIG[kind]),
    }


def _require_whole(asked: _Asked, contents: Mapping[str, Content]) -> None:
    """Raise OllamakeError unless the cache has all of the files: their sizes are known from there only.

    Large ones are not hashed, which is done when they are fetched: the header of .safetensors says their size.
    """
    for name, content in contents.items():
        is_large = content.size > _HASHED_AT_MOST and name.endswith(".safetensors")
        blob = (blob_of if is_large else whole_blob_of)(asked.repo_id, content)
        if blob is None:
            raise asked.not_cached(name)
        if is_large:
            read_header(blob)


def _content(asked: _Asked, name: str) -> Content:
    content = asked.state.contents.get(name)
    if content is None and asked.hub is None:
        raise asked.not_cached(name)
    if content is None:
        raise OllamakeError(
            f"{asked.repo_id}: the hub does not say size and digest of {name}, so what comes of it cannot be checked. Check"
            " HF_ENDPOINT (usually unset): a mirror must pass on ?blobs=true."
        )
    return content


def _shards(asked: _Asked) -> list[str]:
    """Return the names of the shards in the index, which is read from the cache, else from the hub, and checked."""
    try:
        index = parse_json(_read(asked, INDEX, MOST_OF_INDEX))
        # What the cache lacks of them is said by name.
        there = None if asked.hub is None else asked.state.contents
        return shards_of(index.get("weight_map") if isinstance(index, dict) else None, there)
    except (ValueError, RecursionError) as error:
        said = str(error) if INDEX in str(error) else f"{INDEX} is not JSON ({error})"
        raise _unusable(asked, said) from error


def _config(asked: _Asked, name: str) -> dict[str, Any]:
    try:
        config = parse_json(_read(asked, name, MOST_OF_CONFIG))
    except (ValueError, RecursionError) as error:
        raise _unusable(asked, f"{name} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _unusable(asked, f"{name} is not a JSON object")
    return config


def _unusable(asked: _Asked, what: str) -> OllamakeError:
    return OllamakeError(
        f"{asked.repo_id} at commit {asked.state.commit[:12]} cannot be used: {what}. Choose another revision"
        " (org/name@revision)."
    )


def _read(asked: _Asked, name: str, most: int) -> bytes:
    """Return a small file from the cache, else from the hub; asked for again once where it has another digest."""
    content = _content(asked, name)
    blob = whole_blob_of(asked.repo_id, content)
    if blob is not None:
        return blob.read_bytes()
    if asked.hub is None:
        raise asked.not_cached(name)
    fault: str | None = ""
    for _ in range(2):
        try:
            raw = asked.hub.file(name, asked.state.commit, most)
        except HubUnreachable as error:
            # The commit is known, so what the cache has of others may not be taken for it.
            raise not_pinned(asked.reference, str(error), f"{name} of it") from error
        found = content.hash()
        found.update(raw)
        fault = content.difference(found)
        if fault is None:
            return raw
    raise OllamakeError(
        f"{asked.repo_id}: wrong bytes were sent for {name}, twice: {fault}. Run again; if it stays so, HF_ENDPOINT or a"
        " proxy between this machine and the hub changes files."
    )


def _folder(repo_id: str, contents: Mapping[str, Content]) -> str:
    """Return where the files go: named by what they hold, so a commit that changes none of them is the same folder."""
    listed = sorted((name, content.size, content.digest) for name, content in contents.items())
    tree = hashlib.sha256(json.dumps(listed, ensure_ascii=False).encode("utf-8")).hexdigest()
    return f"resources/hub/{repo_id}/{tree[:_TREE_DIGITS]}"


def _say(
    kind: str,
    reference: str,
    state: RepositoryState,
    weights: Sequence[str],
    contents: Mapping[str, Content],
    here: int,
) -> None:
    size, others = sum(contents[name].size for name in weights), len(contents) - len(weights)
    shards = f"{len(weights)} shard{'s' * (len(weights) != 1)}" if kind == "base" else "adapter"
    log.info(
        "%s is commit %s%s: %s, %s, %s%s",
        reference,
        state.commit[:12],
        f" ({state.modified})" if state.modified else "",
        shards,
        _amount(size),
        f"{others} other file{'s' * (others != 1)}",
        f"; {_amount(here)} of it in the cache of huggingface_hub" if here else "",
    )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.1f} MB"
