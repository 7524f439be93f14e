"""The demo served as an adapter beside its base's GGUF, in the real Ollama: it answers as the merged model does."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
import yaml
from faulty_proxy import FaultyProxy
from gguf import GGUFReader, GGUFWriter
from registering import ONE_THREAD, Server, Weights, asking, differences
from snakemake_runs import LLAMA_CPP, REPOSITORY, run_snakemake

from ollamake.adapter_gguf import adapter_record, read_adapter_gguf, require_fitting
from ollamake.create_request import request_of_marker
from ollamake.demo_text import read_examples
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.registration import Place, marker_differences, register
from ollamake.store_server import serving

QUESTIONS = REPOSITORY / "config/demo/road_design.jsonl"
EXAMPLES = read_examples(QUESTIONS)[::3]
"""What is asked: of every road that the demo knows something."""


def model(**more: Any) -> dict[str, Any]:
    settings = {"system": "道路設計の専門家として回答します。", "parameters": {"temperature": 0.1, **ONE_THREAD}}
    answers = {"questions": "questions.jsonl", "min_score": 0.9}
    return {"base": "trained/base", "adapter": "trained/adapter", "ollama": settings, "answers": answers} | more


def build(work: Path, models: dict[str, Any], ollama_settings: dict[str, Any], *arguments: str) -> str:
    """Build models in ``work`` and return what Snakemake printed."""
    config = {"models": models, "ollama": ollama_settings, "tools": {"llama_cpp": str(LLAMA_CPP)}}
    # Through JSON, so that no two models share an object: as an alias it would be changed for both.
    text = yaml.safe_dump(json.loads(json.dumps(config)), allow_unicode=True)
    (work / "mine.yaml").write_text(text, encoding="utf-8")
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "questions.jsonl").write_text("".join(lines[::3]), encoding="utf-8")
    done = run_snakemake("--cores", "2", *arguments, "--configfile", "mine.yaml", folder=work)
    assert done.returncode == 0, done.stdout
    return done.stdout


def marker(work: Path, name: str, quantization: str) -> dict[str, Any]:
    path = work / f"results/{name}/ollama/{quantization}/registered.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def answers(work: Path, name: str, quantization: str) -> list[str]:
    path = work / f"results/{name}/ollama/{quantization}/answers.{name}.json"
    return [one["answer"] for one in json.loads(path.read_text(encoding="utf-8"))["answers"]]


@pytest.fixture(scope="module")
def on_server(work: Path, server: str) -> tuple[Path, str]:
    """(work, address) with the demo merged, as an adapter, and the same adapter once more under another name."""
    shutil.copytree(work / "trained/adapter", work / "trained/other")
    models = {
        "merged": model(quantizations=["F16", "Q8_0"]),
        "beside": model(quantizations=["F16", "Q8_0"], serve="adapter"),
        "other": model(quantizations=["F16"], serve="adapter", adapter="trained/other", answers={}),
    }
    build(work, models, {"target": "server", "host": server}, "all")
    return work, server


@pytest.mark.parametrize("quantization", ["F16", "Q8_0"])
def test_it_answers_as_the_merged_model_does(
    on_server: tuple[Path, str], quantization: str, record_property: pytest.RecordProperty
) -> None:
    work, _ = on_server
    merged, beside = answers(work, "merged", quantization), answers(work, "beside", quantization)
    same = sum(one == other for one, other in zip(merged, beside, strict=True))
    record_property("same answers", f"{same} of {len(merged)}")
    assert len(merged) == len(EXAMPLES)
    assert same >= 0.9 * len(merged)
    right = sum(example.expect in answer for example, answer in zip(EXAMPLES, beside, strict=True))
    assert right >= 0.9 * len(EXAMPLES)


def test_what_the_server_has(on_server: tuple[Path, str]) -> None:
    """The base's GGUF and the adapter, of which the first is one blob for both models; and every layer is verified."""
    work, address = on_server
    markers = [marker(work, "beside", "F16"), marker(work, "beside", "Q8_0"), marker(work, "other", "F16")]
    for one in markers:
        assert marker_differences(one, *request_of_marker(one)) == []
        for kind in ("gguf", "adapter"):
            assert one[kind]["sha256"] == sha256_of(work / one[kind]["file"])
        shown = ollama.Client(address).show(one["name"]).modelfile or ""
        assert re.search(rf"^FROM .*sha256-{one['gguf']['sha256']}$", shown, re.MULTILINE)
        assert re.search(rf"^ADAPTER .*sha256-{one['adapter']['sha256']}$", shown, re.MULTILINE)
    assert markers[0]["gguf"] == markers[2]["gguf"]
    assert markers[0]["gguf"]["file"] == "results/base/gguf/base.F16.gguf"
    assert not list((work / "results/beside").glob("merged/*.safetensors"))
    # The second model on the same base uploads its adapter only.
    log = (work / "logs/register/other.F16.log").read_text(encoding="utf-8")
    both = (work / "logs/register/beside.F16.log").read_text(encoding="utf-8")
    assert any("base.F16.gguf is on the server already" in text for text in (log, both))
    assert "adapter" in log.split("verified:")[1].splitlines()[0]


def test_the_manifest_is_the_one_that_was_predicted(on_server: tuple[Path, str]) -> None:
    """Byte for byte: what is written into a store is what this server writes."""
    work, _ = on_server
    for name, quantization in (("beside", "F16"), ("beside", "Q8_0"), ("other", "F16")):
        log = (work / f"logs/register/{name}.{quantization}.log").read_text(encoding="utf-8")
        assert "the manifest is the one that was asked for, byte for byte" in log


def test_beside_a_model_that_ollama_has(on_server: tuple[Path, str]) -> None:
    """The base is taken from the server, where it is a model by itself; the answers are those of a base that was built."""
    work, address = on_server
    weights = marker(work, "beside", "F16")["gguf"]
    ollama.Client(address).create(model="pulled:f16", files={"base.gguf": f"sha256:{weights['sha256']}"})
    settings = model()["ollama"] | {"from": "pulled:f16"}
    taken = model(quantizations=["F16"], serve="adapter", ollama=settings)
    said = build(work, {"taken": taken}, {"target": "server", "host": address}, "all")
    assert not re.search(r"^(merge_shard|convert_to_gguf|quantize) ", said, re.MULTILINE)
    link = work / "results/taken/gguf/taken.F16.gguf"
    assert link.is_symlink()
    assert link.resolve().name == f"sha256-{weights['sha256']}"
    assert "taken.F16.gguf is on the server already" in (work / "logs/register/taken.F16.log").read_text("utf-8")
    one = marker(work, "taken", "F16")
    assert marker_differences(one, *request_of_marker(one)) == []
    assert answers(work, "taken", "F16") == answers(work, "beside", "F16")


@contextmanager
def served_from_store(work: Path) -> Iterator[str]:
    with serving(work / "results/ollama-store", work / "serve.log") as address:
        yield address


def test_from_a_store(on_server: tuple[Path, str]) -> None:
    """A server that is started on the store has the same model and gives the same answers; verify finds nothing."""
    work, _ = on_server
    expected = answers(work, "beside", "F16")
    models = {"beside": model(quantizations=["F16"], serve="adapter", answers={})}
    build(work, models, {"target": "store"}, "all")
    assert "as registered" in build(work, models, {"target": "store"}, "verify")
    with served_from_store(work) as address:
        client, options = ollama.Client(address), {"temperature": 0, "seed": 1, "num_predict": 512}
        for example, answer in list(zip(EXAMPLES, expected, strict=True))[::4]:
            messages = [{"role": "user", "content": example.question}]
            assert client.chat("beside:f16", messages, options=options).message.content == answer
        name = marker(work, "beside", "F16")["name"]
        base = client.generate(name, EXAMPLES[0].question, options=options | {"num_predict": 1})
        assert base.done


Adapter = tuple[Path, dict[str, Any]]


def random_adapter(weights: Weights, folder: Path, seed: int, inputs: int | None = None) -> Adapter:
    """Write a large random update of one weight as llama.cpp's converter does; return it with its record."""
    (query,) = (tensor for tensor in GGUFReader(weights.file).tensors if tensor.name == "blk.0.attn_q.weight")
    random, path = np.random.default_rng(seed), folder / f"{seed}.adapter.gguf"
    writer = GGUFWriter(path, weights.record["architecture"])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for half, shape in (("a", (4, inputs or int(query.shape[0]))), ("b", (int(query.shape[1]), 4))):
        writer.add_tensor(f"{query.name}.lora_{half}", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, adapter_record(path, path.name, read_adapter_gguf(path))


def answer(server: Server, name: str) -> list[str]:
    options = {"temperature": 0, "seed": 1, "num_predict": 8, "num_ctx": 256, **ONE_THREAD}
    prompts = ("road design", "道路設計", "a", "speed of a road", "design", "road")
    return [str(server.client.generate(name, prompt, options=options).response) for prompt in prompts]


def test_registered_on_each_version(
    ollama_server: Server,
    proxy: FaultyProxy,
    weights: dict[str, Weights],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two adapters on one base, which is uploaded once; each answers otherwise, and what is missing or another is found."""
    small, place = weights["Q8_0"], Place("server", proxy.address, "", 30.0)
    adapters = [random_adapter(small, tmp_path, seed) for seed in (1, 2)]
    register(asking(small, "plain"), small.file, small.record, place)
    answers = [answer(ollama_server, "plain")]
    for number, adapter in enumerate(adapters):
        proxy.forget()
        with caplog.at_level(logging.INFO, "ollamake"):
            marker = register(asking(small, f"m{number}"), small.file, small.record, place, adapter)
        assert proxy.count("POST", "/api/blobs") == 1
        assert "byte for byte" in caplog.text
        caplog.clear()
        assert differences(marker) == []
        answers.append(answer(ollama_server, f"m{number}"))
    assert len(set(map(tuple, answers))) == 3
    # Back and forth: the server loads the base anew with the other adapter.
    assert [answer(ollama_server, name) for name in ("m0", "m1", "plain")] == [answers[1], answers[2], answers[0]]
    register(asking(small, "m1"), small.file, small.record, place, adapters[0])
    other, one = adapters[1][1]["sha256"], adapters[0][1]["sha256"]
    assert f"adapter: asked for sha256 {other}, it has {one}" in differences(marker)
    register(asking(small, "m1"), small.file, small.record, place)
    assert f"adapter: asked for sha256 {other}, it has None" in differences(marker)
    assert ollama_server.broken_blobs() == []


def test_an_adapter_of_another_base_is_refused(weights: dict[str, Weights], tmp_path: Path) -> None:
    small = weights["Q8_0"]
    file, _ = random_adapter(small, tmp_path, 1, inputs=128)
    with pytest.raises(
        OllamakeError, match=r"does not fit .*\n    blk.0.attn_q.weight is \[128, 256\], the model has \[256, 256\]"
    ):
        require_fitting(file, small.file)
