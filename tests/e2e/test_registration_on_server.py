"""Registering with an Ollama that works: what it holds afterwards, to the byte, and what is told of changes from outside."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from registering import FULL, QUANTIZATIONS, TEMPLATE, Kind, Server, Weights, asking, chats, differences, registered
from snakemake_runs import REPOSITORY

from ollamake.atomic_write import write_json
from ollamake.create_request import CreateRequest
from ollamake.drift import KnownRegistrations
from ollamake.registration import Place, register


def test_created_and_verified(ollama_server: Server, weights: dict[str, Weights]) -> None:
    small = weights["Q8_0"]
    marker = registered(ollama_server.address, asking(small, "ours"), small)
    assert differences(marker) == []
    assert {model.model: model.digest for model in ollama_server.client.list().models} == {
        "ours:latest": marker["manifest_digest"]
    }
    assert marker["server_version"] == ollama_server.kind.version
    assert chats(ollama_server, "ours") > 0
    assert ollama_server.broken_blobs() == []


def test_another_prompt_sends_no_weights_and_leaves_no_old_prompt(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights]
) -> None:
    small = weights["Q8_0"]
    registered(proxy.address, asking(small, "ours"), small)
    assert proxy.bodies("POST", "/api/blobs") == small.record["size"]
    before = {file.name for file in ollama_server.models.glob("blobs/*")}
    proxy.forget()
    marker = registered(proxy.address, asking(small, "ours", system="Another."), small)
    assert proxy.count("POST", "/api/blobs") == 0
    assert sum(size for _, _, size in proxy.requests) < 10_000
    assert differences(marker) == []
    old = f"sha256-{hashlib.sha256(str(FULL.system).encode()).hexdigest()}"
    after = {file.name for file in ollama_server.models.glob("blobs/*")}
    assert old in before
    assert old not in after
    assert len(after) == len(before)


def test_the_same_again_changes_nothing(ollama_server: Server, weights: dict[str, Weights]) -> None:
    small = weights["Q8_0"]
    first = registered(ollama_server.address, asking(small, "ours"), small)
    second = registered(ollama_server.address, asking(small, "ours"), small)
    assert second["manifest_digest"] == first["manifest_digest"]


TEXTS = {
    "ideographic space": "全角　スペース　",
    "triple quotes": '"""\nquoted """ and """',
    "emoji joined by ZWJ": "👨‍👩‍👧‍👦 🏳️‍🌈",
    "CRLF": "one\r\ntwo\r\n\r\n",
    "100 kB": "設計速度 80 km/h。\n" * 5000,
    "leading blanks": "   \n\t two blanks before and behind  ",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "U+2028": "line\u2028paragraph\u2029end",
    "byte order mark": "\ufeffmarked\u200b",
    "HTML characters": "<b>&amp;</b> \\u003c",
    "a Modelfile": "FROM /models/sha256-" + "0" * 64 + '\nSYSTEM """x"""\nPARAMETER stop y',
    "beyond the first plane": "𠮷野家 \U000e0001\U0010ffff",
}


def test_texts_come_back_byte_for_byte(ollama_server: Server, weights: dict[str, Weights]) -> None:
    """As system prompt, as licenses and within stop texts."""
    small = weights["Q8_0"]
    for number, (name, text) in enumerate(TEXTS.items()):
        short = text[:200]
        asked = asking(small, f"m{number}", system=text, license=(text, "MIT"), parameters={"stop": [short, "b"]})
        marker = registered(ollama_server.address, asked, small)
        shown = ollama_server.shown(asked.name)
        assert shown["system"] == text, name
        assert shown["license"] == f"{text}\nMIT", name
        assert differences(marker) == [], name
    assert ollama_server.broken_blobs() == []


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1e-05, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.0},
        {"temperature": 0.30000000000000004, "top_k": 40, "repeat_last_n": 128, "num_ctx": 131072},
        {"stop": ["<|im_end|>", "</s>", "###", '"', "\\", "a b"], "num_predict": -2},
        {"use_mmap": False, "seed": 2**53 + 1},
        {"temperature": 1e-07, "presence_penalty": -1.5, "seed": -(2**62) - 1},
    ],
)
def test_parameters(ollama_server: Server, weights: dict[str, Weights], parameters: dict[str, Any]) -> None:
    small = weights["Q8_0"]
    marker = registered(ollama_server.address, asking(small, "ours", parameters=parameters), small)
    assert differences(marker) == []
    assert chats(ollama_server, "ours") > 0


def drift(folder: Path, marker: dict[str, Any]) -> str | None:
    file = folder / "registered.json"
    write_json(file, marker)
    return KnownRegistrations().drift(file)


def test_deleted_outside_is_seen_and_registered_again(
    ollama_server: Server, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small = weights["Q8_0"]
    asked = asking(small, "ours")
    marker = registered(ollama_server.address, asked, small)
    assert drift(tmp_path, marker) is None
    ollama_server.client.delete("ours")
    assert "no longer" in str(drift(tmp_path, marker))
    assert "deleted or renamed" in " ".join(differences(marker))
    again = registered(ollama_server.address, asked, small)
    assert drift(tmp_path, again) is None
    assert differences(again) == []


def test_renamed_outside_is_seen_and_registered_again(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small = weights["Q8_0"]
    marker = registered(proxy.address, asking(small, "ours"), small)
    ollama_server.client.copy("ours", "theirs")
    ollama_server.client.delete("ours")
    assert "no longer" in str(drift(tmp_path, marker))
    assert "deleted or renamed" in " ".join(differences(marker))
    proxy.forget()
    assert differences(registered(proxy.address, asking(small, "ours"), small)) == []
    assert proxy.count("POST", "/api/blobs") == 0
    assert {model.model for model in ollama_server.client.list().models} == {"ours:latest", "theirs:latest"}


@pytest.mark.parametrize("what", ["weights", "system", "template", "temperature", "stop", "top_k", "license"])
def test_what_was_changed_outside_is_named(
    ollama_server: Server, weights: dict[str, Weights], tmp_path: Path, what: str
) -> None:
    small = weights["Q8_0"]
    marker = registered(ollama_server.address, asking(small, "ours"), small)
    body = dict(marker["request"])
    match what:
        case "weights":
            others = small.others(tmp_path)
            ollama_server.client.create_blob(others.file)
            body["files"] = {"x.gguf": f"sha256:{others.digest}"}
        case "system":
            body["system"] += "!"
        case "template":
            body["template"] = TEMPLATE.replace("assistant\n", "assistant\n\n")
        case "license":
            body["license"] = body["license"][:1]
        case "stop":
            body["parameters"] = body["parameters"] | {"stop": ["<|im_end|>"]}
        case _:
            body["parameters"] = body["parameters"] | {what: 0.7 if what == "temperature" else 3}
    ollama_server.create(body)
    assert "another model" in str(drift(tmp_path, marker))
    named = {line.split(":")[0] for line in differences(marker)}
    kept = {line for line in named if not line.startswith("the blob of")}
    assert kept == {what, "manifest"}
    again = registered(ollama_server.address, asking(small, "ours"), small)
    assert again["manifest_digest"] == marker["manifest_digest"]
    assert differences(marker) == []


def test_a_loaded_model_answers_anew_with_other_weights(
    ollama_server: Server, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small, others = weights["Q8_0"], weights["Q8_0"].others(tmp_path)
    first = registered(ollama_server.address, asking(small, "ours"), small)
    chats(ollama_server, "ours")
    assert ("ours:latest", first["manifest_digest"]) in ollama_server.loaded()
    second = registered(ollama_server.address, asking(others, "ours"), others)
    deadline = time.monotonic() + 5
    while ollama_server.loaded() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ollama_server.loaded() == set()
    chats(ollama_server, "ours")
    assert ollama_server.loaded() == {("ours:latest", second["manifest_digest"])}


def test_one_list_tells_of_twenty_models(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small = weights["Q4_K_M"]
    marker = registered(proxy.address, asking(small, "m"), small)
    files = [tmp_path / f"{number}.json" for number in range(20)]
    for file in files:
        ollama_server.client.copy("m", f"m{file.stem}")
        write_json(file, marker | {"name": f"m{file.stem}"})
    ollama_server.client.delete("m7")
    proxy.forget()
    known = KnownRegistrations()
    assert [file.stem for file in files if known.drift(file) is not None] == ["7"]
    assert [request[:2] for request in proxy.requests] == [("GET", "/api/tags")]


# -- stores


@pytest.fixture
def installed(registrar: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Make the version of the server the one that `ollama --version` on PATH names."""
    program = tmp_path / "bin/ollama"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho ollama version is {registrar.version}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return registrar


def stored(models: Path, request: CreateRequest, weights: Weights) -> dict[str, Any]:
    """Register in a store and return the marker."""
    return register(request, weights.file, weights.record, Place("store", None, str(models)))


BARE: dict[str, Any] = {"system": None, "template": None, "license": (), "parameters": {}}
REQUESTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "nothing": BARE,
    "system": BARE | {"system": '日本語　"""<&>\u2028 👨‍👩‍👧'},
    "template": BARE | {"template": TEMPLATE},
    "two licenses": BARE | {"license": ("MIT", "<Apache-2.0>")},
    "the same license twice": BARE | {"license": ("MIT", "MIT")},
    "floats": BARE | {"parameters": {"temperature": 1e-05, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.1}},
    "small and exact floats": BARE | {"parameters": {"temperature": 1e-07, "top_p": 0.30000000000000004}},
    "integers": BARE | {"parameters": {"num_ctx": 131072, "seed": -1, "top_k": 0, "num_predict": 10**15}},
    "integers beyond the floats": BARE | {"parameters": {"seed": 2**62 + 1}},
    "a bool": BARE | {"parameters": {"use_mmap": False}},
    "lists": BARE | {"parameters": {"stop": ["<|im_end|>", "a&b\u2028\u2029", '\\"', "\x07\x08\x0c\x7f\t", "道路"]}},
}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_store_has_the_bytes_that_the_server_writes(
    installed: Kind, weights: dict[str, Weights], tmp_path: Path, quantization: str
) -> None:
    small = weights[quantization]
    models = tmp_path / "served/models"
    # What the texts and parameters of a request become does not depend on the weights.
    names = REQUESTS if quantization == "Q8_0" else ("everything", "nothing")
    asked = {name: asking(small, f"m{number}", **REQUESTS[name]) for number, name in enumerate(names)}
    manifests, markers = {}, {}
    for name, request in asked.items():
        markers[name] = stored(models, request, small)
        manifests[name] = models / f"manifests/registry.ollama.ai/library/{request.name}/latest"
    written = {name: file.read_bytes() for name, file in manifests.items()}
    blobs = {file: file.read_bytes() for file in models.glob("blobs/*")}
    with installed.serving(tmp_path / "served") as server:
        assert {model.digest for model in server.client.list().models} == {
            marker["manifest_digest"] for marker in markers.values()
        }
        for name, request in asked.items():
            manifests[name].unlink()
            server.create(markers[name]["request"])
            assert manifests[name].read_bytes() == written[name], name
            assert registered(server.address, request, small)["manifest_digest"] == markers[name]["manifest_digest"]
            assert differences(markers[name]) == [], name
    assert {file: file.read_bytes() for file in models.glob("blobs/*")} == blobs


def test_a_store_under_a_running_server_is_served_at_once(
    ollama_server: Server, installed: Kind, weights: dict[str, Weights]
) -> None:
    small = weights["Q8_0"]
    assert ollama_server.client.list().models == []
    marker = stored(ollama_server.models, asking(small, "ours"), small)
    assert [model.digest for model in ollama_server.client.list().models] == [marker["manifest_digest"]]
    assert ollama_server.shown("ours")["system"] == FULL.system
    assert chats(ollama_server, "ours") > 0
    marker = stored(ollama_server.models, asking(small, "ours", system="Another."), small)
    assert [model.digest for model in ollama_server.client.list().models] == [marker["manifest_digest"]]
    assert ollama_server.shown("ours")["system"] == "Another."


def test_the_files_of_other_models_stay_as_they_are(
    ollama_server: Server, installed: Kind, weights: dict[str, Weights], tmp_path: Path
) -> None:
    theirs = weights["Q4_K_M"]
    registered(ollama_server.address, asking(theirs, "theirs", system="Theirs.", template=None, license=()), theirs)
    others = weights["Q8_0"].others(tmp_path)
    files = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in _files(ollama_server.models)}
    for weight in (weights["Q8_0"], others):
        stored(ollama_server.models, asking(weight, "ours", parameters={"seed": 1}), weight)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == files
    assert not [file for file in _files(ollama_server.models) if ".tmp" in file.name]


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_a_linked_gguf_survives_what_the_server_does_with_its_blob(
    ollama_server: Server, installed: Kind, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small = weights["Q8_0"].others(tmp_path / "ours")
    content = small.file.read_bytes()
    marker = stored(ollama_server.models, asking(small, "ours"), small)
    blob = ollama_server.models / f"blobs/sha256-{small.digest}"
    # Blocks that are shared have no second name.
    assert blob.stat().st_nlink == 2 or small.file.stat().st_nlink == 1
    assert chats(ollama_server, "ours") > 0
    ollama_server.post("/api/generate", {"model": "ours", "keep_alive": 0})
    ollama_server.create(marker["request"])
    assert small.file.read_bytes() == content
    ollama_server.client.delete("ours")
    assert not blob.exists()
    assert small.file.read_bytes() == content
    assert small.file.stat().st_nlink == 1
    again = registered(ollama_server.address, asking(small, "ours"), small)
    assert differences(again) == []
    assert differences(stored(ollama_server.models, asking(small, "ours"), small)) == []
    assert chats(ollama_server, "ours") > 0
    assert small.file.read_bytes() == content


def test_a_changed_store_is_told_from_its_marker(installed: Kind, weights: dict[str, Weights], tmp_path: Path) -> None:
    small = weights["Q4_K_M"]
    marker = stored(tmp_path / "store", asking(small, "ours"), small)
    assert drift(tmp_path, marker) is None
    assert differences(marker) == []
    blob = tmp_path / f"store/blobs/sha256-{hashlib.sha256(str(FULL.system).encode()).hexdigest()}"
    blob.write_text("A prompt of the same length?"[: blob.stat().st_size].ljust(blob.stat().st_size), encoding="utf-8")
    assert "damaged" in " ".join(differences(marker))
    blob.unlink()
    assert "no longer" in str(drift(tmp_path, marker))
    assert "missing" in " ".join(differences(marker))
    stored(tmp_path / "store", asking(small, "ours"), small)
    assert drift(tmp_path, marker) is None


# -- at the same time


REGISTER_AGAIN_AND_AGAIN = """
import json, sys
from dataclasses import replace
from pathlib import Path
from ollamake.create_request import read_create_request
from ollamake.registration import Place, register
who, address, times, request, gguf, record = sys.argv[1:]
request, record = read_create_request(Path(request)), json.loads(Path(record).read_text())
for number in range(int(times)):
    asked = replace(request, name=f"{who}-{number % 4}", system=f"prompt {number // 5}")
    register(asked, Path(gguf), record, Place("server", address, ""))
"""


def test_two_at_once_take_turns_and_lose_no_shared_blob(
    ollama_server: Server, proxy: FaultyProxy, weights: dict[str, Weights], tmp_path: Path
) -> None:
    small = weights["Q8_0"]
    write_json(tmp_path / "request.json", asking(small, "x").as_json())
    write_json(tmp_path / "record.json", small.record)
    times = "20" if ollama_server.kind.version == "0.17.4" else "8"
    files = [str(tmp_path / "request.json"), str(small.file), str(tmp_path / "record.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER_AGAIN_AND_AGAIN, who, proxy.address, times, *files],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in ("a", "b")
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    # Each begins with a look at what is loaded, and nobody begins before the other has created.
    order = [path for _, path, _ in proxy.requests if path in ("/api/ps", "/api/create")]
    assert order == ["/api/ps", "/api/create"] * (len(order) // 2)
    assert len(order) >= 2 * 2 * int(times)
    assert len(ollama_server.client.list().models) == 8
    assert ollama_server.broken_blobs() == []


def test_a_server_and_a_store_registration_of_the_same_give_the_same_marker_digest(
    ollama_server: Server, installed: Kind, weights: dict[str, Weights], tmp_path: Path
) -> None:
    """But for the path of the blob, which versions before 0.30 write down."""
    small = weights["Q8_0"]
    on_server = registered(ollama_server.address, asking(small, "ours"), small)
    in_store = stored(ollama_server.models, asking(small, "ours"), small)
    assert on_server["manifest_digest"] == in_store["manifest_digest"]
