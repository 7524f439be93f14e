"""Repositories of the stand-in for the Hugging Face hub: their files, and what the hub calls them and their contents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Weights:
    """A shard: its beginning, and zeros up to its size, which are only made when they are sent."""

    head: bytes
    size: int


@dataclass
class Model:
    """A repository: what its revisions stand for now, and commits from before."""

    files: dict[str, bytes | Weights]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    revisions: tuple[str, ...] = ("main",)
    private: bool = False
    gated: bool = False
    earlier: dict[str, dict[str, bytes | Weights]] = field(default_factory=dict)
    """Commits that can still be asked for -> their files."""
    modified: str = "2026-11-02T03:04:05.000Z"

    def push(self, commit: str, changes: dict[str, bytes | Weights | None], keep: bool = True) -> None:
        """Move all revisions to a new commit, in which files have changed or (None) gone.

        Without ``keep`` the history is rewritten: the commit from before is no longer there.
        """
        if keep:
            self.earlier[self.commit] = self.files
        changed = self.files | changes
        self.commit, self.files = commit, {name: content for name, content in changed.items() if content is not None}

    def at(self, revision: str) -> tuple[str, dict[str, bytes | Weights]] | None:
        """Return commit and files of a revision, None if there is no such."""
        if revision in (*self.revisions, self.commit):
            return self.commit, self.files
        return (revision, self.earlier[revision]) if revision in self.earlier else None


def repository_of(folder: Path, **changes: Any) -> Model:
    """Return a repository of the files in a folder and those below it; its commit is told from names and contents."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: dict[str, bytes | Weights] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    digests = "".join(f"{name} {etag(name, content)}\n" for name, content in files.items())
    return Model(files, **{"commit": hashlib.sha1(digests.encode()).hexdigest()} | changes)


def size_of(content: bytes | Weights) -> int:
    """Return the bytes of a file."""
    return content.size if isinstance(content, Weights) else len(content)


def part(content: bytes | Weights, begin: int, size: int) -> bytes:
    """Return bytes of a file, fewer where it ends."""
    if isinstance(content, bytes):
        return content[begin : begin + size]
    return content.head[begin : begin + size].ljust(min(size, content.size - begin), b"\0")


def is_in_lfs(name: str, content: bytes | Weights) -> bool:
    """Whether git has only a pointer to a file."""
    return isinstance(content, Weights) or name.endswith((".safetensors", ".bin", ".gguf"))


def _digest(name: str, content: bytes | Weights) -> str:
    """Return what the hub knows a file by: SHA-256 in LFS (of Weights: of their beginning), else git's SHA-1 of a blob."""
    if isinstance(content, Weights):
        return hashlib.sha256(content.head).hexdigest()
    return hashlib.sha256(content).hexdigest() if is_in_lfs(name, content) else _git_sha1(content)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str, content: bytes | Weights) -> str:
    """Return the tag by which huggingface_hub's cache names a file's blob."""
    return f'"{_digest(name, content)}"'


def blob(name: str, content: bytes | Weights) -> dict[str, Any]:
    """Return what ?blobs=true adds to a file's name. Of a file in LFS git's blob is the pointer to it."""
    if not is_in_lfs(name, content):
        return {"size": size_of(content), "blobId": _digest(name, content)}
    oid = _digest(name, content)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size_of(content)}\n".encode()
    lfs = {"sha256": oid, "size": size_of(content), "pointerSize": len(pointer)}
    return {"size": size_of(content), "blobId": _git_sha1(pointer), "lfs": lfs}


def tree_entry(name: str, content: bytes | Weights) -> dict[str, Any]:
    """Return an entry of /tree/, which calls the same otherwise."""
    described = blob(name, content)
    entry = {"type": "file", "path": name, "size": described["size"], "oid": described["blobId"]}
    if lfs := described.get("lfs"):
        entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return entry
