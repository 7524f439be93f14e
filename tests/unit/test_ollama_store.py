"""The store has the form that Ollama writes, whole or not at all; nothing of others and no GGUF is changed."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ollamake import ollama_store
from ollamake.create_request import CreateRequest
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.ollama_manifest import NEWEST, Manifest, manifest_of
from ollamake.ollama_store import OllamaStore

MANIFEST = "manifests/registry.ollama.ai/library/m/q8_0"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "m.Q8_0.gguf"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "store")


def manifest_for(gguf: Path, system: str = "道路\r\n") -> Manifest:
    size = gguf.stat().st_size
    record = {
        "sha256": sha256_of(gguf),
        "size": size,
        "architecture": "qwen2",
        "parameters": 2048,
        "file_type": 7,
    }
    return manifest_of(CreateRequest("m:q8_0", gguf.name, system, parameters={"top_k": 1}), record, NEWEST)


def put(store: OllamaStore, gguf: Path, name: str = "m:q8_0", **text: str) -> Manifest:
    manifest = manifest_for(gguf, **text)
    store.write(name, manifest, gguf, sha256_of(gguf))
    return manifest


def files(store: OllamaStore) -> list[str]:
    return sorted(str(file.relative_to(store.folder)) for file in store.folder.rglob("*") if file.is_file())


def test_every_blob_lies_under_its_digest_and_the_manifest_under_the_name(store: OllamaStore, gguf: Path) -> None:
    # A server that runs as another user must be able to read it.
    gguf.chmod(0o600)
    manifest = put(store, gguf)
    assert (store.folder / MANIFEST).read_bytes() == manifest.content
    assert store.read("m:q8_0") == json.loads(manifest.content)
    assert store.blob_file(sha256_of(gguf)).read_bytes() == gguf.read_bytes()
    for digest, content in manifest.blobs.items():
        assert store.blob_file(f"sha256:{digest}").read_bytes() == content
    digests = [sha256_of(gguf), *manifest.blobs]
    assert files(store) == sorted([*(f"blobs/sha256-{digest}" for digest in digests), MANIFEST])
    assert {(store.folder / file).stat().st_mode & 0o777 for file in files(store)} == {0o644}


def test_repeating_changes_nothing_and_others_stay(store: OllamaStore, gguf: Path) -> None:
    put(store, gguf)
    before = files(store)
    put(store, gguf)
    assert files(store) == before
    other = put(store, gguf, "other:q8_0", system="another")
    put(store, gguf, system="a new prompt")
    assert store.manifest_file("other:q8_0").read_bytes() == other.content
    assert store.read("m:q8_0") == json.loads(manifest_for(gguf, "a new prompt").content)


def refuse_to_share_blocks(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


def refuse_to_link(number: int) -> Any:
    def hardlink_to(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    return hardlink_to


def test_on_one_filesystem_the_weights_take_no_second_room(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    put(store, gguf)
    assert store.blob_file(sha256_of(gguf)).samefile(gguf)


def test_of_a_link_to_a_gguf_the_file_itself_is_taken(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    link = gguf.with_name("link.gguf")
    link.symlink_to(gguf)
    put(store, link)
    assert not store.blob_file(sha256_of(gguf)).is_symlink()
    assert store.blob_file(sha256_of(gguf)).samefile(gguf)


def test_blocks_are_shared_where_the_filesystem_can(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(writing: int, request: int, reading: int) -> None:
        assert request == 0x40049409
        os.write(writing, os.pread(reading, 100_000, 0))

    monkeypatch.setattr(fcntl, "ioctl", share)
    put(store, gguf)
    assert store.blob_file(sha256_of(gguf)).read_bytes() == gguf.read_bytes()
    assert gguf.stat().st_nlink == 1


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES])
def test_where_no_link_is_possible_the_bytes_are_copied(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    monkeypatch.setattr(Path, "hardlink_to", refuse_to_link(number))
    put(store, gguf)
    assert store.blob_file(sha256_of(gguf)).read_bytes() == gguf.read_bytes()
    assert gguf.stat().st_nlink == 1


def test_a_copy_needs_room_and_says_so(store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, needed: int, what: str) -> None:
        assert (folder, needed) == (store.folder / "blobs", gguf.stat().st_size)
        raise OllamakeError(f"not enough disk for {what}")

    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    monkeypatch.setattr(Path, "hardlink_to", refuse_to_link(errno.EXDEV))
    monkeypatch.setattr(ollama_store, "require_free_disk", full)
    with pytest.raises(OllamakeError, match=r"not enough disk for the copy of m\.Q8_0\.gguf in the store"):
        put(store, gguf)
    assert files(store) == []


@pytest.mark.parametrize("linked", [True, False])
def test_the_gguf_keeps_its_bytes_and_a_new_one_reaches_no_blob(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", refuse_to_link(errno.EXDEV))
    before = sha256_of(gguf)
    put(store, gguf)
    put(store, gguf)
    assert sha256_of(gguf) == before
    # As a rule publishes it: under another name first.
    gguf.with_suffix(".tmp").write_bytes(b"quantized anew")
    gguf.with_suffix(".tmp").replace(gguf)
    assert sha256_of(store.blob_file(before)) == before


@pytest.mark.parametrize("content", [b"half", None])
def test_a_blob_of_weights_that_is_cut_or_gone_is_written_anew(
    store: OllamaStore, gguf: Path, content: bytes | None
) -> None:
    put(store, gguf)
    blob = store.blob_file(sha256_of(gguf))
    blob.unlink()
    if content is not None:
        blob.write_bytes(content)
    put(store, gguf)
    assert sha256_of(blob) == sha256_of(gguf)


def test_a_small_blob_that_is_cut_is_written_anew(store: OllamaStore, gguf: Path) -> None:
    manifest = put(store, gguf)
    for digest in manifest.blobs:
        store.blob_file(digest).write_bytes(b"")
    put(store, gguf)
    assert {digest: store.blob_file(digest).read_bytes() for digest in manifest.blobs} == manifest.blobs


def test_blobs_that_are_there_are_made_new_so_that_no_server_sweeps_them(store: OllamaStore, gguf: Path) -> None:
    manifest = put(store, gguf)
    blobs = [store.blob_file(digest) for digest in (sha256_of(gguf), *manifest.blobs)]
    for blob in blobs:
        os.utime(blob, (1, 1))
    put(store, gguf)
    assert min(blob.stat().st_mtime for blob in blobs) > 1


def test_what_a_killed_registration_of_this_host_left_is_removed_and_no_more(store: OllamaStore, gguf: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = store._temporary().name
    blobs = store.folder / "blobs"
    left = blobs / f"{name[:11]}{ended.pid:07d}{name[18:]}"
    others = [blobs / one for one in (name, f"sha256-{(int(name[7:11]) + 1) % 10000:04d}{left.name[11:]}", "sha256-12")]
    for file in (left, *others):
        file.write_bytes(b"half")
    put(store, gguf)
    assert not left.exists()
    assert all(file.exists() for file in others), "of this process, of another host, of Ollama itself"


def sweeping(store: OllamaStore, digest: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server remove a blob in the moment before the manifest names it."""
    real, left = ollama_store.publish, [None] * times

    def publish(temporary: Path, path: Path) -> None:
        if "manifests" in path.parts and left:
            left.pop()
            store.blob_file(digest).unlink()
        real(temporary, path)

    monkeypatch.setattr(ollama_store, "publish", publish)


@pytest.mark.parametrize("which", ["weights", "system"])
def test_a_blob_that_is_swept_meanwhile_is_written_again(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    digest = sha256_of(gguf) if which == "weights" else hashlib.sha256("道路\r\n".encode()).hexdigest()
    sweeping(store, digest, 2, monkeypatch)
    with caplog.at_level(logging.INFO, "ollamake"):
        put(store, gguf)
    assert sha256_of(store.blob_file(digest)) == digest
    assert caplog.text.count("has swept a blob of m:q8_0 meanwhile; writing it again") == 2


def test_blobs_that_vanish_for_ever_are_given_up(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping(store, sha256_of(gguf), 1000, monkeypatch)
    with pytest.raises(OllamakeError, match=r"blobs of m:q8_0 vanish from .*store as soon as they are written"):
        put(store, gguf)


def test_a_folder_that_a_server_removes_meanwhile_is_made_again(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = ollama_store.publish, [None] * 2

    def publish(temporary: Path, path: Path) -> None:
        if "manifests" in path.parts and left:
            left.pop()
            path.parent.rmdir()
        real(temporary, path)

    monkeypatch.setattr(ollama_store, "publish", publish)
    manifest = put(store, gguf)
    assert (store.folder / MANIFEST).read_bytes() == manifest.content
    assert not left


def test_a_store_of_another_user(store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbids(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ollama_store, "publish", forbids)
    with pytest.raises(
        OllamakeError, match=r"the store .*Permission denied.*folder of your own.*ollama\.target: server"
    ):
        put(store, gguf)
    assert files(store) == []


def test_a_file_where_the_store_should_be(store: OllamaStore, gguf: Path) -> None:
    store.folder.write_text("")
    with pytest.raises(OllamakeError, match=r"the store .* cannot be written to"):
        put(store, gguf)


def test_a_failing_disk_is_no_reason_to_copy(store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse_to_share_blocks)
    monkeypatch.setattr(Path, "hardlink_to", refuse_to_link(errno.EIO))
    with pytest.raises(OllamakeError, match="Input/output error"):
        put(store, gguf)
    assert files(store) == []


def test_blobs_of_somebody_else_are_used_as_they_are(
    store: OllamaStore, gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, gguf)

    def forbids(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", forbids)
    with caplog.at_level(logging.INFO, "ollamake"):
        put(store, gguf, "m:again")
    assert f"{sha256_of(gguf)} belongs to somebody else and is used as it is" in caplog.text
    assert store.manifest_file("m:again").exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"layers": []}', b'{"config": {}}', b"\xff"])
def test_a_manifest_that_is_none_or_damaged(store: OllamaStore, content: bytes | None) -> None:
    path = store.manifest_file("m:q8_0")
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(OllamakeError, match=r"no readable manifest of m:q8_0 \(.*library/m/q8_0: "):
        store.read("m:q8_0")


def test_whether_a_blob_is_there(store: OllamaStore, gguf: Path) -> None:
    put(store, gguf)
    digest = sha256_of(gguf)
    assert store.has_blob(digest)
    assert store.has_blob(f"sha256:{digest}", 7000)
    assert not store.has_blob(digest, 6999)
    assert not store.has_blob("0" * 64)
