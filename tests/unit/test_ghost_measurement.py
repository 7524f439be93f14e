"""What is made of the programs' answers: sizes of files, contexts, and where figures come from."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from ollamake import ghost_measurement
from ollamake.errors import OllamakeError
from ollamake.ghost import DryRun, Ghost
from ollamake.ghost_measurement import Wanted, _File, _memory, _sizes

BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34)}


def ghost(tensors: dict[str, tuple[str, tuple[int, ...]]], **metadata: Any) -> Ghost:
    values = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 8192, "llama.embedding_length": 256,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 512,
    }  # fmt: skip
    return Ghost(
        sizes=Path("sizes.gguf"), memory=Path("memory.gguf"), architecture="llama", metadata=values | metadata,
        metadata_bytes=1000, data_start=0, block_count=2, tensors=tensors, block_sizes=BLOCKS,
    )  # fmt: skip


TENSORS = {
    "token_embd.weight": ("F16", (100, 32)),
    "output_norm.weight": ("F32", (32,)),
    "blk.0.attn_q.weight": ("F16", (32, 32)),
    "blk.0.gate.weight": ("F32", (1, 32)),
    "blk.1.attn_q.bias": ("F32", (33,)),
}


def test_a_file_is_as_large_as_gguf_py_writes_it(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, (kind, shape) in TENSORS.items():
        writer.add_tensor(name, np.zeros(shape, np.float16 if kind == "F16" else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    assert writer.fout is not None
    metadata_bytes = writer.fout[0].tell()
    writer.write_tensors_to_file()
    writer.close()
    described = _File(ghost(TENSORS), metadata_bytes).described("F16")
    assert described["unquantized_bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert described["parameters"] == 3200 + 32 + 1024 + 32 + 33
    assert described["largest_tensor"] == 3200


def test_sizes_are_told_apart_by_where_they_lie() -> None:
    types = {name: "Q8_0" if kind == "F16" else kind for name, (kind, _) in TENSORS.items()}
    # A matrix of one row has one dimension less in the table than the converter writes: 8 bytes, which here are a new block.
    table = sum(8 + len(name) + 4 + 4 + 8 for name in TENSORS) + 8 * (2 + 1 + 2 + 1 + 1)
    file = _File(ghost(TENSORS), 32 * 40 - table)
    sizes = file.quantized(types, imatrix=False)
    assert sizes["embedding_bytes"] == 3424  # 100 blocks of 34 bytes, padded to 32
    assert sizes["other_bytes"] == 128
    assert sizes["block_bytes"] == [1088 + 128, 160]
    assert sizes["tied"]
    assert sizes["bytes"] == 32 * 40 + 3424 + 128 + 1216 + 160
    assert file.described("F16")["metadata_bytes"] == 32 * 41
    assert sizes["bits_per_weight"] == pytest.approx(sizes["bytes"] * 8 / 4321, abs=0.0005)
    assert file.quantized(types, imatrix=True)["bytes"] > sizes["bytes"]


def test_contexts_end_with_the_trained_length() -> None:
    memory = _memory("m", ghost(TENSORS), None, Wanted(contexts=[300], parallel=[3]))
    assert (memory["source"], memory["reason"]) == ("formula", "llama-fit-params is not here")
    assert (memory["impossible"], memory["impossible_slots"]) == ({}, {})
    assert {row["context"] for row in memory["rows"]} == {300, 2048, 4096, 8192}
    assert {row["parallel"] for row in memory["rows"]} == {1, 2, 3, 4}
    long = _memory("m", ghost(TENSORS, **{"llama.context_length": 1_000_000}), None, Wanted())
    assert max(row["context"] for row in long["rows"]) == 262_144
    short = _memory("m", ghost(TENSORS, **{"llama.context_length": 777}), None, Wanted())
    assert {row["context"] for row in short["rows"]} == {777}


def test_an_architecture_without_formula_has_a_reason_in_place_of_figures() -> None:
    memory = _memory("m", ghost(TENSORS, **{"general.architecture": "unheard-of"}), None, Wanted())
    assert memory["source"] is None
    assert "unheard-of" in memory["reason"]
    assert memory["rows"] == []


def test_a_cache_that_fails_with_several_slots_is_impossible_with_these(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(program: Path, gguf: Path, kv: str, parallel: int, context: int) -> tuple[int, int] | str:
        asked.append((kv, parallel, context))
        if kv == "q4_0":
            return f"no {kv}"
        return f"fatal error with {parallel}" if kv == "q8_0" and parallel > 1 else (context, parallel)

    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", answer)
    memory = _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())
    assert memory["source"] == "llama-fit-params"
    assert "reason" not in memory
    assert memory["impossible"] == {"q4_0": "no q4_0"}
    assert memory["impossible_slots"] == {"q8_0": {"2": "fatal error with 2", "4": "fatal error with 4"}}
    possible = [("f16", 1), ("f16", 2), ("f16", 4), ("q8_0", 1)]
    rows = memory["rows"]
    expected = [(*case, context) for case in possible for context in (2048, 4096, 8192)]
    assert [(row["kv"], row["parallel"], row["context"]) for row in rows] == expected
    assert all((row["kv_mib"], row["compute_mib"]) == (row["context"], row["parallel"]) for row in rows)
    # Each is asked once, and what fails with the shortest context is not asked for longer ones.
    assert len(asked) == len(set(asked)) == 12 + 5


def test_where_fit_params_fails_altogether_memory_is_computed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", lambda *asked: "cannot load it")
    memory = _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())
    assert memory["source"] == "formula"
    assert memory["reason"] == "llama-fit-params failed: cannot load it"
    assert memory["impossible"] == {}
    assert len(memory["rows"]) == 27
    assert "cannot load it" in caplog.text


def test_where_f16_fails_altogether_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(program: Path, gguf: Path, kv: str, parallel: int, context: int) -> tuple[int, int] | str:
        asked.append((kv, parallel, context))
        return "fatal error" if kv == "f16" else (1, 1)

    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", answer)
    assert _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())["source"] == "formula"
    assert asked == [("f16", 1, 2048), ("f16", 2, 2048), ("f16", 4, 2048)]


def test_a_context_that_fails_where_shorter_ones_do_not_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(program: Path, gguf: Path, kv: str, parallel: int, context: int) -> tuple[int, int] | str:
        return "too long for it" if (kv, parallel, context) == ("q8_0", 2, 8192) else (context, parallel)

    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", answer)
    memory = _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())
    assert (memory["impossible"], memory["impossible_slots"]) == ({}, {})
    assert len(memory["rows"]) == 26
    assert [row["context"] for row in memory["rows"] if (row["kv"], row["parallel"]) == ("q8_0", 2)] == [2048, 4096]
    assert "8192 tokens in each of 2 slots, KV cache of q8_0: unknown, too long for it" in caplog.text


def dry_run(refused: dict[str, str]) -> Any:
    """Return a types_by_dry_run that refuses types (COPY: the one there is) and leaves all others as they are."""
    found = DryRun({name: kind for name, (kind, _) in TENSORS.items()}, wants_imatrix=False)
    return lambda quantize, gguf, argument, imatrix=None: refused.get(argument, found)


@pytest.mark.parametrize(
    ("types", "refused", "words"),
    [
        (("F16", "Q8_0"), {"COPY": "bad magic"}, r"the model as it is, in F16; it refuses: bad magic\. Build"),
        (("Q8_0", "Q6_K"), {"Q8_0": "bad magic", "Q6_K": "?"}, r"of 2 types; .* Q8_0 with: bad magic\. Build"),
    ],
)
def test_sizes_of_nothing_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...], refused: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(ghost_measurement, "types_by_dry_run", dry_run(refused))
    with pytest.raises(OllamakeError, match=words) as raised:
        _sizes(_File(ghost(TENSORS), 1000), "F16", Path("bin/llama-quantize"), types, tmp_path)
    assert str(raised.value).startswith("bin/llama-quantize --dry-run: ")
    one_less = dict(list(refused.items())[1:])
    monkeypatch.setattr(ghost_measurement, "types_by_dry_run", dry_run(one_less))
    sizes = _sizes(_File(ghost(TENSORS), 1000), "F16", Path("bin/llama-quantize"), types, tmp_path)["types"]
    assert [kind for kind, found in sizes.items() if "refused" in found] == list(one_less)


def test_only_the_cores_that_a_job_was_given_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def pool(count: int) -> ThreadPoolExecutor:
        threads.append(count)
        return ThreadPoolExecutor(count)

    monkeypatch.setattr(ghost_measurement, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(ghost_measurement, "types_by_dry_run", dry_run({}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 7, 11}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    _memory("m", ghost(TENSORS), None, Wanted())
    _sizes(_File(ghost(TENSORS), 1000), "F16", Path("llama-quantize"), ("Q8_0",), tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity")
    _memory("m", ghost(TENSORS), None, Wanted())
    assert threads == [3, 3, 64]
