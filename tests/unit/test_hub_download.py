"""Files of the hub come whole, go on where they were interrupted, and leave huggingface_hub's cache as it is."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_folders import HURRIED, download_to_cache, file_of, nobody, tree
from huggingface_hub import constants
from snakemake_runs import REPOSITORY
from stand_in.hub import TOKEN, Fault, HubStandIn, Model, Request

from ollamake import free_disk
from ollamake.errors import OllamakeError
from ollamake.hub_download import fetch_file, hub_file
from ollamake.hub_requests import Patience

SIZE = 1_500_007
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def content(size: int = SIZE) -> bytes:
    return random.Random(9).randbytes(size)


@pytest.fixture
def model(hub: HubStandIn) -> Model:
    made = Model({WEIGHTS: content(), CONFIG: b'{"model_type": "llama"}', "README.md": b"hello"})
    hub.models["org/model"] = made
    return made


@pytest.fixture
def fetch(hub: HubStandIn, model: Model, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that fetches a file to a folder where nothing else is, and returns where it is."""

    def fetching(
        name: str = WEIGHTS, patience: Patience = HURRIED, endpoint: str | None = None, **changes: Any
    ) -> Path:
        output = output_in(tmp_path, name)
        file = replace(file_of(model, name), **changes)
        fetch_file(file, model.commit, output, endpoint=endpoint or hub.address, patience=patience)
        return output

    return fetching


def output_in(folder: Path, name: str = WEIGHTS) -> Path:
    return folder / "resources/hub/org/model/0123456789ab" / name


def refusal(fetch: Callable[..., Path], **options: Any) -> str:
    with pytest.raises(OllamakeError) as caught:
        fetch(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_" not in message
    assert "X-Signature" not in message
    return message


def partial_of(folder: Path, size: int | None = None) -> Path:
    """Return where the partial is; one of ``size`` bytes is put there."""
    path = output_in(folder, f"{WEIGHTS}.partial")
    if size is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content()[:size])
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in output_in(folder).parent.iterdir())


def sent_by_cdn(hub: HubStandIn) -> list[int]:
    assert hub.sent > 0
    return [request.sent for request in hub.asked("cdn")]


# What is fetched.


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_file_comes_whole_and_alone(
    hub: HubStandIn, model: Model, fetch: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    output = fetch(name)
    assert output.read_bytes() == model.files[name]
    assert not output.is_symlink()
    assert names_in(tmp_path) == [name]
    # One request, and what it is redirected to.
    assert len(hub.requests) == 2
    assert model.commit in hub.requests[0].path
    assert hub.requests[0].range is None


def test_empty_file(hub: HubStandIn, model: Model, fetch: Callable[..., Path]) -> None:
    model.files["merges.txt"] = b""
    assert fetch("merges.txt").read_bytes() == b""


def test_token_goes_to_the_hub_and_not_to_its_cdn(
    hub: HubStandIn, model: Model, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model.private = model.gated = True
    fetch()
    assert [request.authorization for request in hub.requests] == [f"Bearer {TOKEN}", None]


def test_file_that_is_there_is_checked_and_not_fetched(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    output = fetch()
    before = tree(output.parent)
    hub.requests.clear()
    partial_of(tmp_path, 5)
    fetch()
    assert not hub.requests
    assert tree(output.parent) == before
    output.write_bytes(content()[:-1] + b"x")
    assert fetch().read_bytes() == content()


@pytest.mark.parametrize(
    "changes",
    [{"name": "../x"}, {"name": ".."}, {"name": "a/b"}, {"size": -1}, {"size": True}, {"size": "5"}, {"sha256": "AB" * 32},
     {"sha256": "ab" * 20}, {"sha256": None}, {"name": None}, {"name": ""}, {"name": "a\nb"}],
)  # fmt: skip
def test_other_records_are_refused(changes: dict[str, Any]) -> None:
    record = {"repo": "org/model", "name": "x", "size": 5, "sha256": "ab" * 32}
    assert hub_file(record).content.size == 5
    with pytest.raises(OllamakeError, match="expected a file of the hub"):
        hub_file(record | changes)


# Interruptions.


def start(
    hub: HubStandIn, model: Model, folder: Path, name: str = WEIGHTS, **environment: str
) -> subprocess.Popen[str]:
    file = file_of(model, name)
    record = {"repo": file.repo_id, "name": name, **file.content.record()}
    command = [sys.executable, REPOSITORY / "scripts/fetch_file.py", "--file", json.dumps(record)]
    return subprocess.Popen(
        [*command, "--commit", model.commit, "--output", output_in(folder, name)],
        env={**os.environ, **hub.environment(folder / "home"), **environment},
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_it_goes_on_from_there(
    hub: HubStandIn, model: Model, tmp_path: Path, by: signal.Signals
) -> None:
    hub.faults = [Fault("^cdn", "slow", rate=200_000, times=1)]
    partial, output = partial_of(tmp_path), output_in(tmp_path)
    run = start(hub, model, tmp_path)
    wait_for(lambda: partial.exists() and partial.stat().st_size > 100_000)
    run.send_signal(by)
    said = run.communicate(timeout=30)[1]
    there = partial.stat().st_size
    assert names_in(tmp_path) == [partial.name]
    assert partial.read_bytes() == content()[:there]
    assert 100_000 < there < SIZE
    if by == signal.SIGTERM:
        assert run.returncode == 1
        assert "run the same command again to go on" in said
    hub.requests.clear()
    again = start(hub, model, tmp_path)
    said = again.communicate(timeout=60)[1]
    assert again.returncode == 0, said
    assert output.read_bytes() == content()
    assert names_in(tmp_path) == [WEIGHTS]
    assert [request.range for request in hub.asked("cdn")] == [f"bytes={there}-"]
    assert sent_by_cdn(hub) == [SIZE - there]
    assert f"{there} of {SIZE} bytes are here already" in said


def test_connection_may_be_cut_any_number_of_times(
    hub: HubStandIn, fetch: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ollamake")
    hub.faults = [Fault("^cdn", "cut", after=100_000, times=12)]
    assert fetch().read_bytes() == content()
    ranges = [request.range for request in hub.asked("cdn")]
    assert ranges == [None, *(f"bytes={n}00000-" for n in range(1, 13))]
    assert sum(sent_by_cdn(hub)) == SIZE
    assert caplog.text.count("broke off") == 12


def test_cuts_without_progress_come_to_an_end(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    partial = partial_of(tmp_path, 1000)
    hub.faults = [Fault("^cdn", "cut", after=0)]
    message = refusal(fetch)
    assert "org/model, model.safetensors: the connection to 127.0.0.1:" in message
    assert "(of which 1000 bytes were downloaded and are kept)" in message
    assert len(hub.asked("cdn")) == HURRIED.tries
    assert partial.read_bytes() == content()[:1000]


def test_two_cuts_at_the_same_byte_are_no_progress(hub: HubStandIn, fetch: Callable[..., Path]) -> None:
    """A server that ignores Range and always breaks off at the same byte sends as much each time, and never more."""
    hub.faults = [Fault("^cdn", "whole cut", after=70_000)]
    assert "broke off" in refusal(fetch)
    assert sent_by_cdn(hub) == [70_000] * HURRIED.tries


def patient_with(fault: Fault) -> Patience:
    """Return patience in a hurry where nothing is awaited that comes, however busy the machine is."""
    return replace(HURRIED, timeout=1.0) if fault.kind == "hang" else HURRIED


@pytest.mark.parametrize(
    "fault",
    [
        Fault("^cdn", "short", after=50_000, times=2),
        Fault("^cdn", "status", 503, times=2),
        Fault("^cdn", "hang", times=1),
        Fault("/resolve/", "status", 429, {"Retry-After": "0"}, times=2),
        Fault("/resolve/", "cut", times=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_passing_faults(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path, fault: Fault) -> None:
    partial_of(tmp_path, 400_000)
    hub.faults = [replace(fault)]
    assert fetch(patience=patient_with(fault)).read_bytes() == content()
    # Of the 503 a few bytes more.
    assert sum(request.sent for request in hub.asked("cdn")) <= SIZE - 400_000 + 100


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (Fault("^cdn", "status", 503), "fails (status 503)"),
        (Fault("^cdn", "hang"), "no answer from 127.0.0.1"),
        (Fault("/resolve/", "status", 429, {"Retry-After": "1000"}), "asks to wait 1000 s"),
        (Fault("^cdn", "short", after=0), "sent 400000 of 1500007 bytes"),
    ],
    ids=["503", "hang", "429", "short"],
)
def test_lasting_faults_keep_the_partial(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path, fault: Fault, part: str
) -> None:
    partial = partial_of(tmp_path, 400_000)
    hub.faults = [replace(fault)]
    message = refusal(fetch, patience=patient_with(fault))
    assert part in message
    assert "400000 bytes were downloaded and are kept" in message
    assert partial.read_bytes() == content()[:400_000]
    assert names_in(tmp_path) == [partial.name]
    assert len(hub.asked("hub")) == (1 if fault.status == 429 else HURRIED.tries)


def test_pause_is_what_the_server_asks_for(hub: HubStandIn, fetch: Callable[..., Path]) -> None:
    hub.faults = [Fault("^cdn", "status", 503, {"Retry-After": "1"}, times=1)]
    begin = time.monotonic()
    fetch()
    assert time.monotonic() - begin >= 1


def test_server_that_ignores_range_is_read_from_the_beginning(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    partial_of(tmp_path, 400_000)
    hub.faults = [Fault("^cdn", "whole")]
    assert fetch().read_bytes() == content()
    assert sent_by_cdn(hub) == [SIZE]


def test_another_part_is_not_taken_for_the_rest(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    partial = partial_of(tmp_path, 400_000)
    hub.faults = [Fault("^cdn", "shifted")]
    assert "answers with another part" in refusal(fetch)
    assert partial.stat().st_size == 400_000


@pytest.mark.parametrize("there", [0, 400_000])
def test_another_size_is_told_before_a_byte_is_read(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path, there: int
) -> None:
    partial = partial_of(tmp_path, there)
    hub.faults = [Fault("^cdn", "resized", after=5)]
    assert f"should have {SIZE} bytes, 127.0.0.1" in refusal(fetch)
    assert partial.stat().st_size == there
    assert not output_in(tmp_path).exists()


def test_more_than_all_is_not_taken(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    hub.faults = [Fault("^cdn", "endless")]
    assert "more than the" in refusal(fetch)
    assert partial_of(tmp_path).stat().st_size <= SIZE


def test_partial_that_is_longer_than_the_file(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    partial_of(tmp_path, 5).write_bytes(content() + b"more")
    assert fetch().read_bytes() == content()
    assert sent_by_cdn(hub) == [SIZE]


def test_whole_partial_is_checked_and_named(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    """Killed between the last byte and the new name."""
    partial_of(tmp_path, SIZE)
    assert fetch().read_bytes() == content()
    assert not hub.requests


# Wrong bytes.


def test_wrong_bytes_are_fetched_once_more(
    hub: HubStandIn, fetch: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults = [Fault("^cdn", "corrupt", after=777_777, times=1)]
    assert fetch().read_bytes() == content()
    assert sent_by_cdn(hub) == [SIZE, SIZE]
    assert "its sha256 is" in caplog.text


def test_wrong_bytes_of_a_partial_are_fetched_once_more(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    partial_of(tmp_path, 300_000).write_bytes(bytes(300_000))
    assert fetch().read_bytes() == content()
    assert sent_by_cdn(hub) == [SIZE - 300_000, SIZE]


@pytest.mark.parametrize(("name", "server", "kind"), [(WEIGHTS, "^cdn", "sha256"), (CONFIG, "api/resolve", "git_sha1")])
def test_wrong_bytes_twice_are_removed(
    hub: HubStandIn, fetch: Callable[..., Path], model: Model, tmp_path: Path, name: str, server: str, kind: str
) -> None:
    hub.faults = [Fault(server, "corrupt", after=7)]
    message = refusal(fetch, name=name)
    assert f"wrong bytes were sent for {name}, twice: its {kind} is" in message
    assert file_of(model, name).content.digest in message
    assert names_in(tmp_path) == []
    assert sum(name in request.path and request.sent > 100 for request in hub.requests) in (0, 2)
    assert len(hub.asked("hub")) + len(hub.asked("cdn")) == 4


# What cannot be had.


@pytest.mark.parametrize(
    ("changes", "token", "parts"),
    [
        ({"gated": True}, None, ["is gated", "Accept them at https://huggingface.co/org/model", "set HF_TOKEN"]),
        ({"gated": True}, "hf_OfAnotherAccount", ["is gated", "has no access"]),
        ({"private": True}, None, ["no model of that name", "set HF_TOKEN"]),
        ({"private": True}, "hf_OfAnotherAccount", ["no model of that name", "may not read it"]),
        ({}, "hf_Unknown", ["does not know the token"]),
    ],
)
def test_without_the_right_token(
    hub: HubStandIn,
    model: Model,
    fetch: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    token: str | None,
    parts: list[str],
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for name, value in changes.items():
        setattr(model, name, value)
    message = refusal(fetch)
    assert all(part in message for part in parts), message
    assert len(hub.requests) == 1


def test_commit_that_is_gone(hub: HubStandIn, model: Model, tmp_path: Path) -> None:
    file, commit = file_of(model, WEIGHTS), model.commit
    model.push("f" * 40, {"README.md": b"again"}, keep=False)
    with pytest.raises(OllamakeError) as caught:
        fetch_file(file, commit, output_in(tmp_path), endpoint=hub.address, patience=HURRIED)
    assert f"org/model no longer has the commit {commit[:12]}" in str(caught.value)
    assert "`snakemake --forcerun pin_sources`" in str(caught.value)


def test_file_of_a_commit_before_is_that_of_the_commit(hub: HubStandIn, model: Model, tmp_path: Path) -> None:
    file, commit = file_of(model, WEIGHTS), model.commit
    model.push("f" * 40, {WEIGHTS: b"another"})
    fetch_file(file, commit, output_in(tmp_path), endpoint=hub.address, patience=HURRIED)
    assert output_in(tmp_path).read_bytes() == content()


def test_offline(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial_of(tmp_path, 1000)
    message = refusal(fetch, endpoint=nobody())
    assert "org/model, model.safetensors: offline: 127.0.0.1:" in message
    assert "run again when the hub answers" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(fetch)
    assert "model.safetensors: offline: HF_HUB_OFFLINE is set" in message
    assert "unset it" in message
    assert not hub.requests
    assert partial_of(tmp_path).stat().st_size == 1000


def test_room_is_asked_for_before_the_first_byte(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_disk, "free_bytes", lambda folder: SIZE - 400_001 + free_disk.MARGIN)
    partial_of(tmp_path, 400_000)
    message = refusal(fetch)
    assert "not enough disk for model.safetensors of org/model" in message
    assert not hub.requests
    # What is there already needs no room.
    partial_of(tmp_path, 400_001)
    assert fetch().read_bytes() == content()


def test_full_disk_in_the_middle_keeps_what_is_there(
    hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    """A limit that the kernel enforces in write(2), as it does a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))
    try:
        message = refusal(fetch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no room for model.safetensors of org/model" in message
    assert "which are kept" in message
    assert partial_of(tmp_path).read_bytes() == content()[:600_000]
    hub.requests.clear()
    assert fetch().read_bytes() == content()
    assert [request.range for request in hub.asked("cdn")] == ["bytes=600000-"]


# Two at once.


def test_two_runs_download_a_file_once(hub: HubStandIn, fetch: Callable[..., Path], tmp_path: Path) -> None:
    hub.faults = [Fault("^cdn", "slow", rate=3_000_000)]
    done: list[Path] = []
    runs = [threading.Thread(target=lambda: done.append(fetch())) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert done == [output_in(tmp_path)] * 3
    assert done[0].read_bytes() == content()
    assert sent_by_cdn(hub) == [SIZE]
    assert names_in(tmp_path) == [WEIGHTS]


def test_next_run_goes_on_where_one_that_was_killed_was(
    hub: HubStandIn, model: Model, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    """It waits for the lock, which a killed process does not keep."""
    hub.faults = [Fault("^cdn", "slow", rate=200_000, times=1)]
    run = start(hub, model, tmp_path)
    wait_for(lambda: partial_of(tmp_path).exists() and partial_of(tmp_path).stat().st_size > 100_000)
    waiting = threading.Thread(target=fetch)
    waiting.start()
    time.sleep(0.3)
    assert len(hub.asked("cdn")) == 1
    run.kill()
    run.communicate()
    waiting.join()
    assert output_in(tmp_path).read_bytes() == content()
    _, second = hub.asked("cdn")
    assert second.range is not None
    assert int(second.range.removeprefix("bytes=").removesuffix("-")) > 100_000
    assert second.sent < SIZE - 100_000


# The cache of huggingface_hub.


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_file_in_the_cache_is_linked(
    hub: HubStandIn, model: Model, fetch: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    cache = download_to_cache(hub)
    before = tree(cache)
    partial_of(tmp_path, 1000)
    output = fetch(name)
    assert output.readlink() == cache / "models--org--model/blobs" / file_of(model, name).content.digest
    assert output.read_bytes() == model.files[name]
    assert not hub.requests
    assert tree(cache) == before
    # A link to a blob that goes away is no file: it is fetched.
    output.readlink().unlink()
    assert fetch(name).read_bytes() == model.files[name]


def test_blob_of_another_commit_is_the_same_file(hub: HubStandIn, model: Model, fetch: Callable[..., Path]) -> None:
    download_to_cache(hub)
    model.push("f" * 40, {"README.md": b"again"})
    assert fetch().is_symlink()
    assert not hub.requests


def test_blob_that_many_repositories_share(
    hub: HubStandIn, model: Model, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    """As huggingface_hub's shared store has it, the blob itself is a link."""
    cache = download_to_cache(hub)
    blob = cache / "models--org--model/blobs" / file_of(model, WEIGHTS).content.digest
    shared = tmp_path / "store"
    blob.rename(shared)
    blob.symlink_to(shared)
    assert fetch().readlink() == shared


def flip(path: Path) -> None:
    found = path.read_bytes()
    path.write_bytes(found[:9] + bytes([found[9] ^ 1]) + found[10:])


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["flipped", "cut"]
)
def test_damaged_blob_is_named_and_left(
    hub: HubStandIn,
    model: Model,
    fetch: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    cache = download_to_cache(hub)
    blob = cache / "models--org--model/blobs" / file_of(model, WEIGHTS).content.digest
    damage(blob)
    before = tree(cache)
    output = fetch()
    assert not output.is_symlink()
    assert output.read_bytes() == content()
    assert tree(cache) == before
    assert f"{blob} in the cache of huggingface_hub is damaged" in caplog.text


def test_cache_is_enough_offline(hub: HubStandIn, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    download_to_cache(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch().read_bytes() == content()


def test_downloads_do_not_touch_the_cache(hub: HubStandIn, fetch: Callable[..., Path]) -> None:
    cache = download_to_cache(hub, allow_patterns=["README.md"])
    before = tree(cache)
    fetch()
    assert tree(cache) == before


# The script.


def test_neither_token_nor_signature_is_written(hub: HubStandIn, model: Model, tmp_path: Path) -> None:
    model.private = True
    hub.faults = [
        Fault("^cdn", "cut", after=5, times=1),
        Fault("^cdn", "status", 503, times=1),
        Fault("^cdn", "corrupt", after=100, times=2),
    ]
    run = start(hub, model, tmp_path, HF_TOKEN=TOKEN)
    out, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "wrong bytes were sent" in said
    assert "trying again" in said
    assert out == ""
    for secret in (TOKEN, TOKEN[3:], "X-Signature", hub.cdn_address + "/"):
        assert secret not in said


def test_script_says_how_far_it_is(hub: HubStandIn, model: Model, tmp_path: Path) -> None:
    run = start(hub, model, tmp_path)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 0, said
    assert "model.safetensors: 100%" in said
    assert "org/model: model.safetensors is whole, its sha256 as pinned (0.00 GB)" in said
    assert "\r" not in said
    assert isinstance(hub.requests[0], Request)
