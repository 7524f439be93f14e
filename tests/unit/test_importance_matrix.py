"""Blocks of an importance matrix, its file, and its place in the sizes of a plan."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import quantize as quantize_script
from ollamake.errors import OllamakeError
from ollamake.gguf_quantization import order_as_copied
from ollamake.gguf_record import importance_of
from ollamake.importance_file import (
    chunks_of_partial,
    importance_record,
    read_importance,
    takes_importance,
    write_partial,
)
from ollamake.importance_matrix import (
    FIRST_BLOCK,
    TOKENS_TOGETHER,
    Calibration,
    batch_tokens,
    compute_importance,
    next_block,
)
from ollamake.importance_sizes import imatrix_metadata_bytes, sizes_of_model
from ollamake.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED

EXPERTS, COLUMNS = 4, 32
MADE_OF = {"source_sha256": "a", "text_sha256": "b", "context": 16, "parse_special": True}


def write_matrix(path: Path, sums: dict[str, Any], counts: dict[str, Any], chunks: int = 24) -> Path:
    """Write a matrix as llama-imatrix does: see tools/imatrix/imatrix.cpp."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 16)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", np.array(values, np.float32))
        writer.add_tensor(f"{name}.counts", np.array(counts[name], np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, names: dict[str, tuple[int, ...]]) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, shape in names.items():
        writer.add_tensor(name, np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shapes = {
        "token_embd.weight": (64, COLUMNS),
        "blk.0.attn_norm.weight": (COLUMNS,),
        "blk.0.attn_q.weight": (COLUMNS, COLUMNS),
        "blk.0.ffn_gate_inp.weight": (EXPERTS, COLUMNS),
        "blk.0.ffn_up_exps.weight": (EXPERTS, 64, COLUMNS),
        "blk.1.attn_q.weight": (COLUMNS, COLUMNS),
    }
    return write_model(tmp_path / "u.gguf", shapes)


def some_sums() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "blk.0.attn_q.weight": random.random((1, COLUMNS)),
        "blk.0.ffn_up_exps.weight": random.random((EXPERTS, COLUMNS)),
        "blk.1.attn_q.weight": random.random((1, COLUMNS)),
    }


COUNTS = {"blk.0.attn_q.weight": [384], "blk.0.ffn_up_exps.weight": [100, 0, 284, 0], "blk.1.attn_q.weight": [384]}


def record_of(path: Path, model: Path, chunks: int = 24) -> dict[str, Any]:
    return importance_record(path, model, {"sha256": "s"}, {"sha256": "t", "chunks": chunks})


@pytest.mark.parametrize("context", [16, 17, 128, 300, 512, 513, 1000, 4096, 10_007])
def test_no_batch_is_too_short_to_count(context: int) -> None:
    """llama-imatrix leaves out batches of fewer than 16 tokens, and asserts that whole chunks, or parts of one, are one."""
    batch = batch_tokens(context)
    assert batch <= TOKENS_TOGETHER
    if context <= TOKENS_TOGETHER:
        assert batch % context == 0
        assert batch + context > TOKENS_TOGETHER
    else:
        parts = [min(batch, context - begin) for begin in range(0, context, batch)]
        assert sum(parts) == context
        assert min(parts) >= 16


@pytest.mark.parametrize("together", [1, 4, 32])
@pytest.mark.parametrize("total", [2, 7, 8, 15, 16, 17, 45, 200, 1001])
@pytest.mark.parametrize("pace", [0.0, 0.5, 33.0, 10_000.0])
def test_blocks_are_whole_batches_and_cover_the_text(together: int, total: int, pace: float) -> None:
    done, seconds, blocks = 0, None, []
    while done < total:
        blocks.append(next_block(done, total, seconds, together))
        done, seconds = done + blocks[-1], pace
    assert done == total
    assert all(block % together == 0 for block in blocks[:-1])
    assert len(blocks) == 1 or blocks[-1] >= FIRST_BLOCK
    assert pace > 0.0 or len(blocks) <= 2


def test_a_block_takes_about_five_minutes() -> None:
    assert next_block(8, 1000, 2.0, 1) == 150
    assert next_block(8, 1000, 2.0, 4) == 152


def test_a_matrix_is_read_as_it_was_written(tmp_path: Path, model: Path) -> None:
    sums = some_sums()
    found = read_importance(write_matrix(tmp_path / "m.gguf", sums, COUNTS))
    assert (found.chunks, found.chunk_tokens) == (24, 16)
    assert found.sums.keys() == sums.keys()
    for name in sums:
        assert np.array_equal(found.sums[name], sums[name].astype(np.float32))
        assert found.counts[name].tolist() == COUNTS[name]


def test_experts_without_tokens_and_matrices_without_figures_are_named(tmp_path: Path, model: Path) -> None:
    sums = some_sums()
    record = record_of(write_matrix(tmp_path / "whole.gguf", sums, COUNTS), model)
    assert record["entries"] == 3
    (experts,) = record["warnings"]
    assert experts.startswith("2 of 4 experts' matrices saw no token of the text (blk.0.ffn_up_exps.weight: 1, 3);")
    del sums["blk.1.attn_q.weight"], sums["blk.0.ffn_up_exps.weight"]
    (missing,) = record_of(write_matrix(tmp_path / "part.gguf", sums, COUNTS), model)["warnings"]
    assert missing.startswith(
        "2 matrices took no part in reading the text: blk.0.ffn_up_exps.weight, blk.1.attn_q.weight;"
    )


def test_other_chunks_than_the_text_has_are_said(tmp_path: Path, model: Path) -> None:
    counts = COUNTS | {"blk.0.ffn_up_exps.weight": [100, 1, 282, 1]}
    path = write_matrix(tmp_path / "m.gguf", some_sums(), counts)
    assert record_of(path, model)["warnings"] == []
    record = record_of(path, model, chunks=25)
    assert record["chunks"] == 24
    assert "reads 24 chunks of 16 tokens in the text, its record says 25" in record["warnings"][0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    sums = some_sums()
    sums["blk.0.ffn_up_exps.weight"][2, 5] = value
    with pytest.raises(OllamakeError, match=r"blk\.0\.ffn_up_exps\.weight has NaN or infinity"):
        read_importance(write_matrix(tmp_path / "m.gguf", sums, COUNTS))


def test_what_is_no_matrix_or_of_another_model_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(OllamakeError, match="expected an importance matrix"):
        read_importance(model)
    path = write_matrix(tmp_path / "m.gguf", some_sums(), COUNTS)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-200])
    (tmp_path / "empty.gguf").touch()
    for name in ("cut", "empty", "absent"):
        with pytest.raises(OllamakeError, match="not a whole one"):
            read_importance(tmp_path / f"{name}.gguf")
    other = write_model(tmp_path / "other.gguf", {"blk.0.attn_q.weight": (COLUMNS, COLUMNS)})
    with pytest.raises(OllamakeError, match=r"does not have: blk\.0\.ffn_up_exps\.weight, blk\.1\.attn_q\.weight"):
        record_of(path, other)


def test_which_matrices_use_figures() -> None:
    assert takes_importance("blk.0.ffn_down.weight", (8, 8))
    assert takes_importance("blk.0.ffn_down_exps.weight", (4, 8, 8))
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight"):
        assert not takes_importance(name, (8, 8))
    assert not takes_importance("blk.0.attn_norm.weight", (8,))
    assert not takes_importance("blk.0.ssm_conv1d.weight", (8, 4))


def test_an_unfinished_matrix_is_gone_on_with_where_it_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = tmp_path / ".m.partial"
    assert chunks_of_partial(partial, MADE_OF, 100) == 0
    path = write_matrix(tmp_path / "m.gguf", some_sums(), COUNTS)
    write_partial(path, partial, MADE_OF, 24)
    assert chunks_of_partial(partial, dict(reversed(MADE_OF.items())), 24) == 24
    before, after = read_importance(path), read_importance(partial)
    for name in before.sums:
        assert before.sums[name].tobytes() == after.sums[name].tobytes()
        assert before.counts[name].tobytes() == after.counts[name].tobytes()
    # A data set named here would be named a second time by the run that goes on from it.
    assert "imatrix.datasets" not in GGUFReader(partial).fields
    caplog.set_level(logging.INFO, "ollamake")
    for made_of, most, reason in (
        (MADE_OF | {"context": 17}, 100, "it is made of something else"),
        (MADE_OF | {"text_sha256": "c"}, 100, "it is made of something else"),
        (MADE_OF, 23, "too few to go on with"),
    ):
        write_partial(path, partial, MADE_OF, 24)
        assert chunks_of_partial(partial, made_of, most) == 0
        assert not partial.exists()
        assert reason in caplog.messages[-1]
    for content in (b"", b"GGUF", path.read_bytes()):
        partial.write_bytes(content)
        assert chunks_of_partial(partial, MADE_OF, 100) == 0
        assert "cannot be read" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("chunks", "context", "words"), [(1, 512, "at least two chunks of 512"), (9, 15, "at least 16")]
)
def test_too_little_text_is_said_before_the_model_is_loaded(
    tmp_path: Path, chunks: int, context: int, words: str
) -> None:
    text = Calibration(tmp_path / "calibration.txt", "t", chunks, context, True)
    with pytest.raises(OllamakeError, match=words):
        compute_importance(tmp_path / "no", tmp_path / "u.gguf", "s", text, tmp_path / "o", tmp_path / "p", 1)


def program_that(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 0.1 E failed to load model; exit 1", r"\(exit code 1\):\n0.1 E failed to load model"),
        ("echo out of memory; kill -KILL $$", r"\(exit code -9\):\nout of memory"),
        # It ends well, but there is nothing; or what there is, is no matrix.
        ("echo computing over 9 chunks", r"\(exit code 0\):\ncomputing over 9 chunks"),
        (
            "echo 0.1 E collect_imatrix: non-finite values detected in blk.3.attn_q.weight; exit 1",
            r"u\.gguf computes NaN or infinity on .*calibration\.txt: in what goes into blk\.3\.attn_q\.weight\.",
        ),
        ('while [ "$1" != -o ]; do shift; done; echo x > "$2"; echo computing over 9 chunks', "not a whole one"),
    ],
)
def test_the_programs_last_words(tmp_path: Path, script: str, words: str) -> None:
    program = program_that(tmp_path / "llama-imatrix", script)
    (tmp_path / "calibration.txt").write_text("text", "utf-8")
    text = Calibration(tmp_path / "calibration.txt", "t", 9, 512, True)
    with pytest.raises(OllamakeError, match=words):
        compute_importance(program, tmp_path / "u.gguf", "s", text, tmp_path / "o.gguf", tmp_path / "p", 1)
    assert not (tmp_path / "p").exists()


def test_a_quantization_says_what_matrix_it_is_made_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "m.imatrix.json"
    record.write_text(json.dumps({"sha256": "m", "chunks": 24, "source_sha256": "s"}), "utf-8")
    assert importance_of(record, "Q4_K_M", {"sha256": "s"}) == {"imatrix": {"sha256": "m", "chunks": 24}}
    with pytest.raises(
        OllamakeError, match="expected an importance matrix of the GGUF with sha256 other, found one of s"
    ):
        importance_of(record, "Q4_K_M", {"sha256": "other"})
    with pytest.raises(OllamakeError, match="makes no use of an importance matrix for Q8_0"):
        importance_of(record, "Q8_0", {"sha256": "s"})
    required = ["--program", "p", "--gguf", "u", "--source-record", "u", "--type", "Q4_K_M", "--output", "o"]
    required += ["--record", "r", "--threads", "1"]
    with pytest.raises(SystemExit):
        quantize_script.parse_args([*required, "--imatrix", "m.imatrix.gguf"])
    assert "--imatrix and --imatrix-record need each other" in capsys.readouterr().err


def test_the_keys_of_a_matrix_are_as_long_as_gguf_py_writes_them(tmp_path: Path) -> None:
    for file, written in (("m.imatrix.gguf", "m.imatrix.gguf"), ("é" * 100, "é" * 63 + "x")):
        sizes = []
        for matrix in (False, True):
            writer = GGUFWriter(tmp_path / "x.gguf", "llama")
            if matrix:
                writer.add_string("quantize.imatrix.file", written)
                writer.add_string("quantize.imatrix.dataset", "calibration.txt")
                writer.add_uint32("quantize.imatrix.entries_count", 14)
                writer.add_uint32("quantize.imatrix.chunks_count", 200)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            sizes.append((tmp_path / "x.gguf").stat().st_size)
        assert imatrix_metadata_bytes(file) == sizes[1] - sizes[0]


def test_what_is_said_of_a_matrix_comes_before_version_and_type(tmp_path: Path) -> None:
    """As if it had been copied: a file that is larger than its metadata keeps all else."""
    path = tmp_path / "x.gguf"
    orders = []
    for keys in (("version", "type", "file", "chunks"), ("file", "chunks", "version", "type")):
        writer = GGUFWriter(path, "llama")
        for key in keys:
            if key == "version":
                writer.add_quantization_version(2)
            elif key == "type":
                writer.add_file_type(15)
            elif key == "file":
                writer.add_string("quantize.imatrix.file", "m.imatrix.gguf")
            else:
                writer.add_uint32("quantize.imatrix.chunks_count", 200)
        writer.add_tensor("blk.0.attn_q.weight", np.arange(64, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        orders.append(path.read_bytes())
    path.write_bytes(orders[0])
    order_as_copied(path)
    assert path.read_bytes() == orders[1] != orders[0]
    order_as_copied(path)
    assert path.read_bytes() == orders[1]


def test_types_that_need_a_matrix_use_it() -> None:
    assert all(kind.uses_imatrix for kind in QUANTIZATION_TYPES.values() if kind.needs_imatrix)
    assert not any(QUANTIZATION_TYPES[name].uses_imatrix for name in UNQUANTIZED)


def test_sizes_of_a_model_with_a_matrix() -> None:
    """The name of the model counts, a type that ignores a matrix does not change, one that has other types with it does."""
    size = {"imatrix": False, "bits_per_weight": 0, "block_bytes": [640], "other_bytes": 64, "embedding_bytes": 0}
    size |= {"bytes": 1000, "tied": True}
    ghost = {
        "parameters": 1000,
        "table_end": 32 * 40 - imatrix_metadata_bytes("m.imatrix.gguf"),
        "types": {
            "Q4_K_M": size, "Q8_0": size, "Q4_0": size, "IQ2_XS": size | {"imatrix": True}, "TQ1_0": {"refused": "no"},
        },
        "with_imatrix": {"Q4_0": size | {"imatrix": True, "other_bytes": 96}},
    }  # fmt: skip
    found = sizes_of_model(ghost, "m", imatrix=True)
    assert found["with_imatrix"] == {}
    assert found["types"] == {
        "Q4_K_M": size | {"imatrix": True, "bytes": 1280 + 704, "bits_per_weight": 15.872},
        "Q8_0": size,
        "Q4_0": size | {"imatrix": True, "other_bytes": 96, "bytes": 1280 + 736, "bits_per_weight": 16.128},
        "IQ2_XS": size | {"imatrix": True, "bytes": 1280 + 704, "bits_per_weight": 15.872},
        "TQ1_0": {"refused": "no"},
    }
    longer = sizes_of_model(ghost, "mm", imatrix=True)
    assert longer["types"]["Q4_K_M"]["bytes"] == 1280 + 32 + 704
    without = sizes_of_model(ghost, "m", imatrix=False)
    assert without["types"] == ghost["types"] | {"IQ2_XS": found["types"]["IQ2_XS"]}
    assert without["with_imatrix"] == {"Q4_0": found["types"]["Q4_0"]}
