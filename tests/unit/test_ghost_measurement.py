"""What is made of the programs' answers: sizes of files, contexts, and where figures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from ollamake import ghost_measurement
from ollamake.ghost import Ghost
from ollamake.ghost_measurement import Wanted, _File, _memory

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
    assert memory["source"] == "formula"
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


def test_a_cache_that_fails_with_several_slots_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(program: Path, gguf: Path, kv: str, parallel: int, context: int) -> tuple[int, int] | str:
        return "fatal error" if kv == "q8_0" and parallel > 1 else (context, parallel)

    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", answer)
    memory = _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())
    assert memory["source"] == "llama-fit-params"
    assert memory["impossible"] == {"q8_0": "fatal error"}
    assert {row["kv"] for row in memory["rows"]} == {"f16", "q4_0"}
    row = {"kv": "f16", "parallel": 2, "context": 4096, "kv_mib": 4096, "compute_mib": 2}
    assert row in memory["rows"]


def test_where_fit_params_fails_altogether_memory_is_computed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ghost_measurement, "memory_by_fit_params", lambda *asked: "cannot load it")
    memory = _memory("m", ghost(TENSORS), Path("llama-fit-params"), Wanted())
    assert memory["source"] == "formula"
    assert "cannot load it" in caplog.text
