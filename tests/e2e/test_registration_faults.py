"""Registering with an Ollama that fails, hangs, is cut off or runs out of disk, and with weights that are damaged.

In the end there is one clear error, or a model that is whole; never one that only seems to be.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import Action, Answer, Cut, CutAnswer, FaultyProxy, Hang
from registering import REQUESTS, Kind, Server, Weights, asking, assert_whole, chats, differences, registered, script

from ollamake.errors import OllamakeError

PATIENCE = 0.4
"""Seconds, as `ollama.timeout`, where a server is to hang."""

pytestmark = pytest.mark.usefixtures("short_waits")
the_real_one = pytest.mark.parametrize("registrar", ["the real 0.17.4"], indirect=True)
"""For faults that the proxy plays alone: the server behind it makes no difference."""
each_request = pytest.mark.parametrize("request_kind", REQUESTS)


# -- a server that fails

PASSING: list[list[Action]] = [
    [Answer(500), Cut(), CutAnswer(20)],
    [CutAnswer(), Answer(503, "server busy, please try again.  maximum pending requests exceeded")],
]
"""What goes wrong one after the other; the fourth time it must work."""


@each_request
def test_what_passes_is_overcome(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path, request_kind: str
) -> None:
    for number, actions in enumerate(PASSING):
        small = weights["Q4_K_M"].others(tmp_path, number)
        proxy.forget()
        for action in actions:
            proxy.fault(*REQUESTS[request_kind], action)
        marker = registered(proxy.address, asking(small, f"m{number}"), small)
        assert proxy.count(*REQUESTS[request_kind]) > len(actions)
        assert differences(marker) == []
    assert ollama_server.broken_blobs() == []


def test_a_list_that_another_client_disturbs_is_asked_for_again(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    """What Ollama says where a manifest vanishes while it lists them (its DELETE removes empty folders)."""
    small = weights["Q4_K_M"]
    said = "lstat /m/manifests/registry.ollama.ai/library/x: no such file or directory"
    proxy.fault("GET", "/api/tags", Answer(500, said))
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


def test_a_server_that_does_not_say_its_version_at_the_end(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    """Once it has answered, it is known to be there."""
    small = weights["Q4_K_M"]
    proxy.fault("GET", "/api/version", Answer(503), after=1)
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


@the_real_one
@each_request
@pytest.mark.parametrize("action", [Answer(500, "it is broken"), Cut()], ids=["500", "cut off"])
def test_what_does_not_pass_is_one_clear_error(
    proxy: FaultyProxy, weights: dict[str, Weights], request_kind: str, action: Action
) -> None:
    small = weights["Q4_K_M"]
    proxy.fault(*REQUESTS[request_kind], action, times=None)
    began = time.monotonic()
    with pytest.raises(OllamakeError) as caught:
        registered(proxy.address, asking(small, "ours"), small)
    assert time.monotonic() - began < 5
    assert proxy.address in str(caught.value)
    if isinstance(action, Answer):
        # An answer to HEAD has no text.
        assert ("500 Internal" if request_kind == "look" else "500 it is broken") in str(caught.value)


@the_real_one
def test_the_script_ends_in_one_message(proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path) -> None:
    proxy.fault("POST", "/api/create", Answer(500, "it is broken"), times=None)
    with script(proxy.address, weights["Q4_K_M"], tmp_path) as process:
        said = process.communicate()[1]
    assert process.returncode == 1
    assert "error: POST /api/create" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "registered.json").exists()


# -- a server that hangs


@the_real_one
@pytest.mark.parametrize(
    ("request_kind", "action"),
    [
        *(pytest.param(kind, Hang(), id=kind) for kind in REQUESTS),
        pytest.param("upload", Hang(after=0), id="upload that is not read"),
        pytest.param("upload", Hang(after=100_000), id="upload that is read in part"),
    ],
)
def test_a_hanging_server_is_given_up(
    proxy: FaultyProxy, weights: dict[str, Weights], request_kind: str, action: Action
) -> None:
    small = weights["F32"]
    proxy.fault(*REQUESTS[request_kind], action, times=None)
    began = time.monotonic()
    with pytest.raises(OllamakeError, match=r"silent for too long|timed out"):
        registered(proxy.address, asking(small, "ours"), small, timeout=PATIENCE)
    assert time.monotonic() - began < 4 * (PATIENCE + small.record["size"] / 20e6) + 3


@pytest.mark.parametrize("request_kind", ["look", "upload", "create", "tags", "show"])
def test_a_server_that_hangs_once_is_overcome(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], request_kind: str
) -> None:
    small = weights["Q4_K_M"]
    proxy.fault(*REQUESTS[request_kind], Hang())
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small, timeout=2 * PATIENCE))


# -- a connection that is cut


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_upload_that_is_cut_once_is_overcome(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], share: float
) -> None:
    small = weights["F32"]
    proxy.fault("POST", "/api/blobs", Cut(int(share * small.record["size"])))
    marker = registered(proxy.address, asking(small, "ours"), small)
    assert proxy.count("POST", "/api/blobs") == 2
    assert_whole(ollama_server, marker)


def test_an_upload_that_is_always_cut_is_an_error(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    small = weights["F32"]
    proxy.fault("POST", "/api/blobs", Cut(1_000_000), times=None)
    with pytest.raises(OllamakeError, match=f"upload of {small.file.name}.* failed 4 times"):
        registered(proxy.address, asking(small, "ours"), small)
    assert ollama_server.client.list().models == []
    proxy.heal()
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


# -- a disk that is full

ROOM = 6_000_000


@contextmanager
def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bound the room for a server's models: by a filesystem of its own, else by the size that its files may have."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        with file_size_limit(monkeypatch):
            yield


@contextmanager
def file_size_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no file of a server grow beyond ROOM; of the processes that are started meanwhile."""
    start = subprocess.Popen.__init__

    def limited(self: Any, *arguments: Any, **settings: Any) -> None:
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

        start(self, *arguments, **{**settings, "preexec_fn": limit})

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", limited)
        yield


@pytest.mark.parametrize("limit", ["disk", "file size"])
def test_a_full_disk_is_named_and_the_earlier_model_stays(
    registrar: Kind, weights: dict[str, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    small, large = weights["Q4_K_M"], weights["F32"]
    models = tmp_path / "server/models"
    bounded = full_disk(models, monkeypatch) if limit == "disk" else file_size_limit(monkeypatch)
    with bounded, registrar.serving(tmp_path / "server") as server:
        earlier = registered(server.address, asking(small, "ours"), small)
        began = time.monotonic()
        with pytest.raises(OllamakeError, match=r"upload of .*( disk .* is full|no file of that size)"):
            registered(server.address, asking(large, "ours"), large)
        assert time.monotonic() - began < 3
        assert_whole(server, earlier)
        assert chats(server, "ours") > 0
        assert not [file for file in (models / "blobs").iterdir() if len(file.name) < 71]


def test_a_disk_that_is_full_only_when_the_weights_are_rewritten(
    registrar: Kind, weights: dict[str, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions before 0.30 do not rewrite them."""
    large = weights["F16"]
    with full_disk(tmp_path / "server/models", monkeypatch), registrar.serving(tmp_path / "server") as server:
        if registrar.version == "0.17.4":
            assert_whole(server, registered(server.address, asking(large, "ours"), large))
        else:
            with pytest.raises(OllamakeError, match=r"disk .* is full"):
                registered(server.address, asking(large, "ours"), large)
            assert server.client.list().models == []
            assert server.broken_blobs() == []


@the_real_one
@pytest.mark.parametrize("said", ["no space left on device", "disk quota exceeded"])
def test_each_kind_of_full_disk_is_said_at_once(proxy: FaultyProxy, weights: dict[str, Weights], said: str) -> None:
    small = weights["Q4_K_M"]
    proxy.fault("POST", "/api/create", Answer(500, f"write /m/blobs/sha256-1: {said}"), times=None)
    with pytest.raises(OllamakeError, match=rf"{said}.* disk .* is full"):
        registered(proxy.address, asking(small, "ours"), small)
    assert proxy.count("POST", "/api/create") == 1


# -- weights that are not what their record says


def test_a_gguf_that_was_changed_is_named(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path
) -> None:
    changed = weights["F32"].others(tmp_path)
    stale = Weights(changed.file, weights["F32"].record)
    with pytest.raises(OllamakeError) as caught:
        registered(proxy.address, asking(stale, "ours"), stale)
    assert str(changed.file) in str(caught.value)
    assert "Delete it and run again" in str(caught.value)
    assert proxy.count("POST", "/api/blobs") == 1
    assert ollama_server.client.list().models == []
    assert ollama_server.broken_blobs() == []


@the_real_one
def test_a_gguf_that_was_cut_is_named(proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(weights["Q4_K_M"].file.read_bytes()[:-1])
    cut = Weights(file, weights["Q4_K_M"].record)
    with pytest.raises(OllamakeError, match=str(file)):
        registered(proxy.address, asking(cut, "ours"), cut)
    assert proxy.requests == []


def test_a_blob_of_the_server_that_is_cut_short_is_named(ollama_server: Server, weights: dict[str, Weights]) -> None:
    """After a power cut, say: the server takes a blob for whole by its name."""
    small = weights["Q8_0"]
    blob = ollama_server.models / f"blobs/sha256-{small.digest}"
    blob.write_bytes(small.file.read_bytes()[:1_000_000])
    with pytest.raises(OllamakeError, match=r"cut short; delete it there"):
        registered(ollama_server.address, asking(small, "ours"), small)
    blob.unlink()
    assert_whole(ollama_server, registered(ollama_server.address, asking(small, "ours"), small))


@pytest.mark.parametrize("size", [0, 100])
def test_a_manifest_that_is_cut_short_is_written_anew(
    ollama_server: Server, weights: dict[str, Weights], size: int
) -> None:
    """Ollama writes over the old one, so that a kill or a full disk leaves a part of it."""
    small = weights["Q8_0"]
    marker = registered(ollama_server.address, asking(small, "ours"), small)
    manifest = ollama_server.models / "manifests/registry.ollama.ai/library/ours/latest"
    manifest.write_bytes(manifest.read_bytes()[:size])
    assert "does not list it" in " ".join(differences(marker))
    assert_whole(ollama_server, registered(ollama_server.address, asking(small, "ours"), small))


@the_real_one
@pytest.mark.parametrize("request_kind", ["loaded", "create", "tags", "show"])
def test_something_else_that_answers(proxy: FaultyProxy, weights: dict[str, Weights], request_kind: str) -> None:
    """A page that asks for a login, say."""
    proxy.fault(*REQUESTS[request_kind], Answer(200, '"<html>'), times=None)
    with pytest.raises(OllamakeError, match=proxy.address):
        registered(proxy.address, asking(weights["Q4_K_M"], "ours"), weights["Q4_K_M"])
