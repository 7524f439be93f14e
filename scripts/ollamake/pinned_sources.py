"""What of a model is on the Hugging Face hub, as results/MODEL/sources.json has it: read, without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record

FORMAT = 1
"""Of sources.json; another one has what is there pinned again."""


@dataclass(frozen=True)
class PinnedSource:
    """A base or an adapter on the hub at one commit, and which of its files are needed."""

    reference: str
    """As the configuration names it: org/name, or org/name@revision."""
    repo: str
    revision: str
    commit: str
    folder: str
    """Where its files are fetched to."""
    weights: tuple[str, ...]
    """Names of its weight files, in order."""
    files: tuple[str, ...]
    """Names of the other files that are needed."""
    content: Mapping[str, Mapping[str, Any]]
    """Name -> size in bytes, and sha256 or git_sha1."""
    config: Mapping[str, Any]
    """What is in config.json or adapter_config.json."""

    @property
    def paths(self) -> tuple[list[str], list[str]]:
        """Weight files and small files, where they are fetched to."""
        return [f"{self.folder}/{name}" for name in self.weights], [f"{self.folder}/{name}" for name in self.files]

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(int(self.content[name]["size"]) for name in self.weights)

    def digests(self) -> dict[str, str]:
        """Return path -> digest of the weight files: what changes when one is another."""
        return {f"{self.folder}/{name}": _digest(self.content[name]) for name in self.weights}

    def file(self, name: str) -> dict[str, Any]:
        """Return what has to be known to fetch a file. Raises OllamakeError for one that is not needed."""
        if name not in self.content:
            raise OllamakeError(f"{self.repo} at commit {self.commit[:12]} has no {name} that is needed.")
        return {"repo": self.repo, "name": name, **self.content[name]}


def pinned_sources(file: Path) -> dict[str, PinnedSource]:
    """Return the sources in a model's sources.json by the name that the configuration has for them.

    Raises OllamakeError for a file that is damaged.
    """
    status = file.stat()
    return _read(file, status.st_size, status.st_mtime_ns)


@cache
def _read(file: Path, size: int, mtime_ns: int) -> dict[str, PinnedSource]:
    """Read once a process, however many jobs look."""
    pins = read_record(file)
    try:
        sources = [_source(one) for one in (pins["base"], *pins["adapters"]) if one is not None]
    except (KeyError, TypeError, ValueError) as error:
        raise OllamakeError(
            f"{file} is damaged ({error!r}). Delete it, and what is on the hub is pinned again: to where the branch is now."
        ) from error
    return {source.reference: source for source in sources}


def _source(one: Mapping[str, Any]) -> PinnedSource:
    texts = {key: str(one[key]) for key in ("reference", "repo", "revision", "commit", "folder")}
    names = {key: tuple(map(str, one[key])) for key in ("weights", "files")}
    source = PinnedSource(**texts, **names, content=dict(one["content"]), config=dict(one["config"]))
    for name in (*source.weights, *source.files):
        _digest(source.content[name])
        int(source.content[name]["size"])
    return source


def _digest(content: Mapping[str, Any]) -> str:
    return f"sha256:{content['sha256']}" if "sha256" in content else f"git:{content['git_sha1']}"
