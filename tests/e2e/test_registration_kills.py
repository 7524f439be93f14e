"""Registering while the server or the client is killed, or somebody else changes models at the same server.

In the end there is one clear error, or a model that is whole; never one that only seems to be.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import Call, FaultyProxy
from registering import Server, Weights, asking, assert_whole, chats, differences, registered, script

from ollamake.errors import OllamakeError

log = logging.getLogger(__name__)

pytestmark = pytest.mark.usefixtures("short_waits")

MOMENTS = {
    "before the upload": ("POST", "/api/blobs", 0),
    "during the upload": ("POST", "/api/blobs", 1_000_000),
    "before create": ("POST", "/api/create", 0),
    "during create": ("POST", "/api/create", 1),
    "before the list": ("GET", "/api/tags", 0),
    "before show": ("POST", "/api/show", 0),
}


# -- a server that is killed


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_server_is_an_error_and_registering_again_succeeds(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], moment: str
) -> None:
    small = weights["F32"]
    method, prefix, after = MOMENTS[moment]
    proxy.fault(method, prefix, Call(ollama_server.kill, after))
    with pytest.raises(OllamakeError, match="failed 4 times"):
        registered(proxy.address, asking(small, "ours"), small)
    ollama_server.restart()
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_server_that_is_killed_and_started_again_is_overcome(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], moment: str
) -> None:
    small = weights["F32"]
    method, prefix, after = MOMENTS[moment]
    proxy.fault(method, prefix, Call(ollama_server.restart, after))
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


def test_a_server_that_is_killed_at_any_moment_of_create(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path
) -> None:
    """Also over a model of the same name; what then is there is whole, or is said not to be."""
    first = weights["Q4_K_M"]
    marker = registered(proxy.address, asking(first, "ours"), first)
    for number in range(4):
        small = first.others(tmp_path, number)
        proxy.fault("POST", "/api/create", Call(lambda number=number: _later(0.005 * number, ollama_server.kill)))
        try:
            marker = registered(proxy.address, asking(small, "ours", system=f"{number}"), small)
        except OllamakeError as error:
            log.info("%s", error)
        ollama_server.restart()
        proxy.heal()
        assert differences(marker) == [] or drifted(marker)
        marker = registered(proxy.address, asking(small, "ours", system=f"{number}"), small)
        assert_whole(ollama_server, marker)
    assert chats(ollama_server, "ours") > 0


def drifted(marker: dict[str, Any]) -> bool:
    """Whether it is said that a model is another one now, or is gone."""
    found = differences(marker)
    return any(line.startswith(("manifest:", "weights:")) or "not list" in line for line in found)


def _later(seconds: float, function: Callable[[], object]) -> None:
    threading.Timer(seconds, function).start()


# -- a client that is killed


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_client_leaves_nothing_that_is_taken_for_whole(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path, moment: str
) -> None:
    small = weights["F32"]
    method, prefix, after = MOMENTS[moment]
    process: list[subprocess.Popen[str]] = []
    proxy.fault(method, prefix, Call(lambda: os.killpg(process[0].pid, signal.SIGKILL), after))
    process.append(script(proxy.address, small, tmp_path))
    process[0].communicate()
    assert process[0].returncode == -signal.SIGKILL
    assert not (tmp_path / "registered.json").exists()
    assert ollama_server.broken_blobs() == []
    if "upload" in moment:
        assert not (ollama_server.models / f"blobs/sha256-{small.digest}").exists()
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


# -- somebody else at the same server


@pytest.mark.parametrize("moment", ["before create", "before the list", "before show"])
def test_a_model_that_another_client_deletes_meanwhile_is_registered_again(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], moment: str
) -> None:
    small = weights["Q4_K_M"]
    registered(proxy.address, asking(small, "ours"), small)
    method, prefix, _ = MOMENTS[moment]
    proxy.fault(method, prefix, Call(lambda: ollama_server.client.delete("ours")))
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


def test_a_model_that_was_deleted_while_it_is_loaded(
    ollama_server: Server, weights: dict[str, Weights], tmp_path: Path
) -> None:
    """It stays in the list of what is loaded, but has no name any more by which to unload it."""
    small, others = weights["Q4_K_M"], weights["Q4_K_M"].others(tmp_path)
    registered(ollama_server.address, asking(small, "ours"), small)
    assert chats(ollama_server, "ours") > 0
    ollama_server.client.delete("ours")
    assert ollama_server.loaded()
    assert_whole(ollama_server, registered(ollama_server.address, asking(others, "ours"), others))
    assert chats(ollama_server, "ours") > 0


def test_a_model_that_is_always_deleted_is_an_error(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    small = weights["Q4_K_M"]
    proxy.fault("GET", "/api/tags", Call(lambda: ollama_server.client.delete("ours")), times=None)
    with pytest.raises(OllamakeError, match=r"ours was registered.* but .*(?s:.*)deleted or renamed"):
        registered(proxy.address, asking(small, "ours"), small)


def test_a_model_that_another_client_replaces_meanwhile_is_an_error(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    small = weights["Q4_K_M"]
    theirs = asking(small, "ours", system="Theirs.").as_api(small.digest)
    proxy.fault("GET", "/api/tags", Call(lambda: ollama_server.create(theirs)), times=None)
    with pytest.raises(OllamakeError, match=r"(?s)not what was asked for.*system: .*Theirs"):
        registered(proxy.address, asking(small, "ours"), small)


def test_a_blob_that_another_client_sweeps_meanwhile_is_sent_again(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    """What a delete or create of another model does to blobs that no manifest names yet."""
    small = weights["Q4_K_M"]
    weight_file = ollama_server.models / f"blobs/sha256-{small.digest}"
    proxy.fault("POST", "/api/create", Call(weight_file.unlink))
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))
    assert proxy.count("POST", "/api/blobs") == 2


def test_a_prompt_that_another_client_sweeps_after_create_is_noticed(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    small = weights["Q4_K_M"]
    proxy.fault("GET", "/api/tags", Call(lambda: _blob_of(ollama_server, "system").unlink()))
    assert_whole(ollama_server, registered(proxy.address, asking(small, "ours"), small))


def _blob_of(server: Server, kind: str) -> Path:
    manifest = json.loads((server.models / "manifests/registry.ollama.ai/library/ours/latest").read_bytes())
    layer = next(layer for layer in manifest["layers"] if layer["mediaType"].endswith(f".{kind}"))
    return server.models / "blobs" / str(layer["digest"]).replace(":", "-")
