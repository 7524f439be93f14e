"""llama-bench's own lines, recorded from the pinned version, and programs that stand in for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollamake.errors import OllamakeError
from ollamake.speed_run import measure_speed, speed_record

COMMON = (
    '"build_commit": "unknown", "build_number": 0, "cpu_info": "AMD EPYC", "gpu_info": "", "backends": "CPU", "model_filename":'
    ' "m.gguf", "model_type": "qwen2 ?B Q4_K - Medium", "model_size": 2259712, "model_n_params": 3411200, "n_batch": 2048,'
    ' "n_ubatch": 512, "n_threads": 2, "cpu_mask": "0x0", "cpu_strict": false, "poll": 50, "type_k": "f16", "type_v": "f16",'
    ' "n_gpu_layers": -1, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": false, "flash_attn": -1,'
    ' "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "auto", "lazy_mode": "auto",'
    ' "embeddings": false, "no_op_offload": 0, "no_host": false, "repack": true, "fit_target": 0, "fit_min_ctx": 0,'
)
PROMPT = (
    "{"
    + COMMON
    + ' "n_prompt": 512, "n_gen": 0, "n_depth": 0, "test_time": "2026-11-27T07:07:54Z", "avg_ns": 82292500,'
    ' "stddev_ns": 32536483, "avg_ts": 6895.362885, "stddev_ts": 2619.203839, "samples_ns": [ 53401411, 75938970, 117537119'
    ' ],"samples_ts": [ 9587.76, 6742.26, 4356.07 ]}\n'
)
GENERATION = (
    "{" + COMMON + ' "n_prompt": 0, "n_gen": 64, "n_depth": 0, "test_time": "2026-11-27T07:07:54Z", "avg_ns": 58898767,'
    ' "stddev_ns": 69749976, "avg_ts": 2476.245463, "stddev_ts": 1799.237915, "samples_ns": [ 16344409, 139395066, 20956826'
    ' ],"samples_ts": [ 3915.71, 459.127, 3053.9 ]}\n'
)
RECORD: dict[str, Any] = {"sha256": "abc"}


def test_record() -> None:
    assert speed_record(PROMPT + GENERATION, RECORD, "Q4_K_M") == {
        "type": "Q4_K_M",
        "gguf_sha256": "abc",
        "prompt": {"tokens": 512, "per_second": 6895.362885, "stddev": 2619.203839},
        "generation": {"tokens": 64, "per_second": 2476.245463, "stddev": 1799.237915},
        "repetitions": 3,
        "threads": 2,
        "cpu": "AMD EPYC",
        "gpu": "",
        "backends": "CPU",
        "gpu_layers": -1,
        "build": "unknown (0)",
    }


def program(folder: Path, output: str, said: str = "", returncode: int = 0) -> Path:
    (folder / "output").write_text(output, encoding="utf-8")
    (folder / "said").write_text(said, encoding="utf-8")
    path = folder / "llama-bench"
    path.write_text(
        f'#!/bin/sh\necho "$@" > {folder}/args\ncat {folder}/said >&2\ncat {folder}/output\nexit {returncode}\n'
    )
    path.chmod(0o755)
    return path


def test_command_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        f"llama-bench: benchmark {n}/2: {what} run {m}/3"
        for n, what in ((1, "prompt"), (2, "generation"))
        for m in (1, 2, 3)
    ]
    bench = program(
        tmp_path, PROMPT + GENERATION, "llama-bench: benchmark 1/2: warmup prompt run\n" + "\n".join(runs) + "\n"
    )
    record = measure_speed(bench, Path("m.gguf"), RECORD, "Q4_K_M", 2)
    assert record == speed_record(PROMPT + GENERATION, RECORD, "Q4_K_M")
    assert (tmp_path / "args").read_text() == "-m m.gguf -p 512 -n 64 -r 3 -t 2 -o jsonl --progress\n"
    assert "6/6" in capsys.readouterr().err


def without(line: str, key: str) -> str:
    values = json.loads(line)
    del values[key]
    return json.dumps(values) + "\n"


@pytest.mark.parametrize(
    "output",
    [
        "",
        PROMPT,
        PROMPT + GENERATION + GENERATION,
        PROMPT + GENERATION[:300],
        PROMPT + GENERATION.replace('"avg_ts": 2476.245463', '"avg_ts": nan'),
        PROMPT + GENERATION.replace('"avg_ts": 2476.245463', '"avg_ts": 0.0'),
        without(PROMPT, "stddev_ts") + GENERATION,
        without(PROMPT, "n_gpu_layers") + GENERATION,
    ],
)
def test_what_is_not_as_expected_is_shown(tmp_path: Path, output: str) -> None:
    bench = program(tmp_path, output, "a warning\n")
    with pytest.raises(
        OllamakeError, match=r"(?s)llama-bench did not print what was expected of it on m\.gguf.*a warning"
    ):
        measure_speed(bench, Path("m.gguf"), RECORD, "Q4_K_M", 2)


def test_a_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    bench = program(tmp_path, "", "main: error: failed to load model 'm.gguf'\n", 1)
    with pytest.raises(OllamakeError, match=r"failed on m\.gguf \(exit code 1\):\nmain: error: failed to load model"):
        measure_speed(bench, Path("m.gguf"), RECORD, "Q4_K_M", 2)
