"""A model without its weights: what is written, and how llama.cpp's programs are understood. Their words were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors import safe_open

from ollamake.errors import OllamakeError
from ollamake.ghost import (
    IMATRIX_CHUNKS,
    memory_by_fit_params,
    parse_dry_run,
    parse_fit_params,
    types_by_dry_run,
    write_ghost_imatrix,
)
from ollamake.ghost_checkpoint import ghost_of_shape, outtype_of_shape, tensors_of_shape, write_ghost_shard
from ollamake.importance_sizes import IMATRIX_DATASET
from ollamake.shape import Shape

# ruff: noqa: E501
DRY_RUN = """\
llama_quantize: calculating quantization size for 'sizes.gguf' as Q4_K_M
llama_model_loader: - type  f32:  141 tensors
warning: blk.0.ffn_down.weight - ncols    336 not divisible by 256 (required for type    q6_K) -> falling back to    q8_0
[   1/   4] output.weight                        - [  3584, 152064,      1,      1], type =    f16, size =  1039.50 MiB ->   426.36 MiB (q6_K)
[   2/   4] output_norm.weight                   - [  3584,      1,      1,      1], type =    f32, size =    0.014 MiB
[   3/   4] blk.0.a_name_that_is_longer_than_its_column.weight - [  3584,    512,      1,      1], type =   bf16, size =     3.50 MiB ->     0.98 MiB (iq4_nl)
[   4/   4] blk.0.ffn_down_exps.weight           - [   336,    512,    128,      1], type =    f16, size =     3.50 MiB ->     0.98 MiB (q8_0)
llama_model_quantize_impl: quant size  =  4460.45 MiB (4.91 BPW)
"""
WANTS = "llama_model_quantize_impl: WARNING: dry run completed successfully, but actually completing this quantization will require an imatrix!\n"
FIT = """\
0.00.002.105 I llama_fit_params: printing estimated memory in MiB to stdout (device, model, context, compute) ...
Host 26006 425 149\x20
"""
ABORTS = """\
0.00.008.084 I llama_fit_params: printing estimated memory in MiB to stdout (device, model, context, compute) ...
/some/where/ggml/src/ggml-impl.h:330: fatal error
"""
THROWS = """\
0.00.002.236 I llama_fit_params: printing estimated memory in MiB to stdout (device, model, context, compute) ...
0.00.002.776 E llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=20
terminate called after throwing an instance of 'std::runtime_error'
  what():  failed to create llama_context from model
"""


def test_a_dry_run_names_the_type_of_every_tensor() -> None:
    found = parse_dry_run(DRY_RUN)
    assert found.types == {
        "output.weight": "Q6_K",
        "output_norm.weight": "F32",
        "blk.0.a_name_that_is_longer_than_its_column.weight": "IQ4_NL",
        "blk.0.ffn_down_exps.weight": "Q8_0",
    }
    assert not found.wants_imatrix
    assert parse_dry_run(DRY_RUN + WANTS).wants_imatrix


def test_fit_params_says_context_and_compute() -> None:
    assert parse_fit_params(FIT) == (425, 149)
    assert parse_fit_params(ABORTS) is None


def program_that(folder: Path, says: str, ends: str) -> Path:
    (folder / "said").write_text(says, encoding="utf-8")
    program = folder / "program"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/arguments\ncat {folder}/said\n{ends}\n', encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("says", "ends", "words"),
    [
        (ABORTS, "kill -ABRT $$", "ggml-impl.h:330: fatal error (signal 6)"),
        (
            THROWS,
            "kill -ABRT $$",
            "llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=20 (signal 6)",
        ),
        (
            "\n".join(THROWS.splitlines()[2:]),
            "kill -ABRT $$",
            "failed to create llama_context from model (signal 6)",
        ),
        ("", "exit 3", "it said nothing (exit code 3)"),
    ],
)
def test_a_cache_that_ends_in_a_crash_is_impossible_in_the_programs_words(
    tmp_path: Path, says: str, ends: str, words: str
) -> None:
    assert memory_by_fit_params(program_that(tmp_path, says, ends), tmp_path / "m.gguf", "q8_0", 2, 4096) == words


def test_memory_is_asked_for_as_ollama_starts_the_server(tmp_path: Path) -> None:
    assert memory_by_fit_params(program_that(tmp_path, FIT, ""), Path("m.gguf"), "q8_0", 4, 2048) == (425, 149)
    asked = (tmp_path / "arguments").read_text(encoding="utf-8")
    assert "-c 8192 -np 4 -ctk q8_0 -ctv q8_0 -fa on -b 512 -ub 512" in asked


def test_llama_quantize_refuses_in_its_own_words(tmp_path: Path) -> None:
    says = "llama_model_quantize: failed to quantize: no tensor type fallback is defined for type q1_0\n"
    program = program_that(tmp_path, says, "exit 1")
    assert types_by_dry_run(program, tmp_path, "Q1_0") == "no tensor type fallback is defined for type q1_0"
    with pytest.raises(OllamakeError, match="cannot be run"):
        types_by_dry_run(tmp_path / "no_such_program", tmp_path, "Q1_0")


@pytest.mark.parametrize(
    ("says", "ends", "words"),
    [
        ("", "kill -SEGV $$", r"signal 11 \(SIGSEGV\); its last words: it said nothing\. Build"),
        (ABORTS, "kill -ABRT $$", r"signal 6 \(SIGABRT\); its last words: ggml-impl\.h:330: fatal error\. Build"),
        (DRY_RUN, "kill -KILL $$", r"signal 9 \(SIGKILL\)"),
    ],
)
def test_a_crash_of_llama_quantize_is_no_refusal(tmp_path: Path, says: str, ends: str, words: str) -> None:
    program = program_that(tmp_path, says, ends)
    with pytest.raises(OllamakeError, match=words) as raised:
        types_by_dry_run(program, tmp_path, "Q4_K_M")
    assert str(raised.value).startswith(f"{program} --dry-run for Q4_K_M ")
    assert "tools.llama_cpp" in str(raised.value)


def test_a_shard_has_its_tensors_and_no_data(tmp_path: Path) -> None:
    tensors = [("b.weight", "BF16", (70_000, 8192)), ("a.weight", "F32", (3,))]
    write_ghost_shard(tmp_path / "model.safetensors", tensors)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            "b.weight": (70_000, 8192),
            "a.weight": (3,),
        }
        assert not file.get_tensor("a.weight").any()
    status = (tmp_path / "model.safetensors").stat()
    assert status.st_size > 1e9
    assert status.st_blocks * 512 < 100_000


def test_a_fine_tune_of_a_shape_is_merged_into_float16(tmp_path: Path) -> None:
    config = {"architectures": ["A"], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = (
        ("model.embed_tokens.weight", "BF16", (16, 8)),
        ("x.weight", "F8_E4M3", (8, 8)),
        ("x.weight_scale_inv", "F32", (1, 1)),
        ("y.weight", "F32", (8,)),
    )
    shape = Shape("org/name", "", config, tensors, None)
    assert tensors_of_shape(shape) == [
        ("model.embed_tokens.weight", "F16", (16, 8)),
        ("x.weight", "F16", (8, 8)),
        ("y.weight", "F32", (8,)),
    ]
    assert ghost_of_shape(shape, tmp_path) == "f16"
    assert json.loads((tmp_path / "config.json").read_text()) == {"architectures": ["A"]}
    assert outtype_of_shape(Shape("f32", "", {}, (("x.weight", "F32", (8, 8)),), None)) == "f32"


def test_a_shape_of_quantized_weights_is_refused(tmp_path: Path) -> None:
    shape = Shape("org/name", "", {"quantization_config": {"quant_method": "awq"}}, (("x", "F16", (8, 8)),), None)
    with pytest.raises(OllamakeError, match="org/name holds awq weights"):
        ghost_of_shape(shape, tmp_path)


def test_an_importance_matrix_has_ones_for_every_expert_and_column(tmp_path: Path) -> None:
    tensors = [
        ("token_embd.weight", (300, 64)),
        ("output.weight", (300, 64)),
        ("blk.0.attn_norm.weight", (64,)),
        ("blk.0.attn_q.weight", (32, 64)),
        ("blk.0.ffn_up_exps.weight", (4, 96, 64)),
    ]
    assert write_ghost_imatrix(tmp_path / "imatrix.gguf", tensors) == 2
    reader = GGUFReader(tmp_path / "imatrix.gguf")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # columns first
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": [64, 1],
        "blk.0.attn_q.weight.counts": [1, 1],
        "blk.0.ffn_up_exps.weight.in_sum2": [64, 4],
        "blk.0.ffn_up_exps.weight.counts": [1, 4],
    }
    assert all(np.all(tensor.data == 1) for tensor in reader.tensors)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == [IMATRIX_DATASET]
    assert reader.fields["imatrix.chunk_count"].contents() == IMATRIX_CHUNKS
