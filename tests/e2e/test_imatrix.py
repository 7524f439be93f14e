"""Importance matrices as llama.cpp makes them, and what comes of them."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns import these
from dag_build import save_small_base
from gguf import GGUFReader
from ghost_models import CONVERTER, SmallModel
from snakemake_runs import REPOSITORY

import compute_imatrix
import quantize as quantize_script
from ollamake import importance_matrix
from ollamake.atomic_write import write_json
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_conversion import convert
from ollamake.gguf_quantization import quantize, type_argument
from ollamake.gguf_record import gguf_record
from ollamake.ghost_measurement import Programs, Wanted, measure_merge
from ollamake.importance_sizes import sizes_of_model
from ollamake.quantization_types import QUANTIZATION_TYPES

CONTEXT, CHUNKS = 32, 45


@dataclass(frozen=True)
class Files:
    """A model called ``name`` in its folders, as the workflow lays them out."""

    folder: Path
    name: str = "m"

    @property
    def gguf(self) -> Path:
        return self.folder / f"gguf/{self.name}.unquantized.gguf"

    @property
    def matrix(self) -> Path:
        return self.folder / f"gguf/{self.name}.imatrix.gguf"

    @property
    def text(self) -> Path:
        return self.folder / "quality/calibration.txt"

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.matrix.with_suffix(".json").read_text("utf-8"))
        return found

    def put(self, gguf: Path, chunks: int = CHUNKS, context: int = CONTEXT) -> Files:
        """Lay out a copy of a GGUF and a text of words in random order, with their records."""
        self.gguf.parent.mkdir(parents=True)
        self.text.parent.mkdir()
        shutil.copy(gguf, self.gguf)
        write_json(self.gguf.with_suffix(".json"), gguf_record(self.gguf, self.gguf.name, "F16"))
        words = random.Random(1)
        text = " ".join(
            words.choice(("road", "design", "道路", "設計", "80km/h", "the", "<|im_end|>\n")) for _ in range(2000)
        )
        self.text.write_text(text, encoding="utf-8")
        record = {"sha256": sha256_of(self.text), "chunks": chunks, "context": context, "parse_special": True}
        write_json(self.text.with_suffix(".json"), record)
        return self

    def arguments(self, program: Path, threads: int = 1) -> list[str]:
        return [
            *("--program", str(program), "--gguf", str(self.gguf)),
            *("--source-record", str(self.gguf.with_suffix(".json"))),
            *("--text", str(self.text), "--text-record", str(self.text.with_suffix(".json"))),
            *("--output", str(self.matrix), "--record", str(self.matrix.with_suffix(".json"))),
            *("--threads", str(threads)),
        ]

    def compute(self, program: Path, threads: int = 1) -> None:
        compute_imatrix.main(self.arguments(program, threads))

    def quantize(self, program: Path, kind: str) -> tuple[Path, dict[str, Any]]:
        """Return the quantization made with the matrix, and its record."""
        output = self.gguf.with_name(f"{self.name}.{kind}.gguf")
        quantize_script.main(
            [
                *("--program", str(program), "--gguf", str(self.gguf)),
                *("--source-record", str(self.gguf.with_suffix(".json")), "--type", kind, "--threads", "2"),
                *("--imatrix", str(self.matrix), "--imatrix-record", str(self.matrix.with_suffix(".json"))),
                *("--output", str(output), "--record", str(output.with_suffix(".json"))),
            ]
        )
        return output, json.loads(output.with_suffix(".json").read_text("utf-8"))


def recorded(file: Path) -> None:
    """Let the record of a file tell of what it is now."""
    record = file.with_suffix(".json")
    write_json(record, json.loads(record.read_text("utf-8")) | {"sha256": sha256_of(file)})


@pytest.fixture(scope="module")
def imatrix(llama_cpp: Callable[[str], Path]) -> Path:
    return llama_cpp("llama-imatrix")


@pytest.fixture(scope="module")
def quantizer(llama_cpp: Callable[[str], Path]) -> Path:
    return llama_cpp("llama-quantize")


@pytest.fixture(scope="module")
def made(imatrix: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A small random model with its importance matrix."""
    folder = tmp_path_factory.mktemp("imatrix")
    save_small_base(folder / "base")
    convert(CONVERTER, folder / "base", "f16", "small", folder / "small.gguf")
    files = Files(folder / "m").put(folder / "small.gguf")
    files.compute(imatrix)
    return files


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in GGUFReader(path).tensors}


def test_the_bytes_are_those_of_one_run_of_llama_imatrix(made: Files, imatrix: Path, tmp_path: Path) -> None:
    """What is compared with has no blocks, and asks for what the text holds, not for a number of chunks."""
    shutil.copy(made.text, tmp_path)
    command = [str(imatrix), "-m", str(made.gguf), "-f", made.text.name, "-c", str(CONTEXT), "-b", "512", "-ub", "512"]
    command += ["--chunks", str(CHUNKS), "--parse-special", "-o", "one.gguf", "-t", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert sha256_of(tmp_path / "one.gguf") == sha256_of(made.matrix)
    record = made.record()
    del record["seal"]
    assert record == {
        "sha256": sha256_of(made.matrix),
        "size": made.matrix.stat().st_size,
        "chunks": CHUNKS,
        "context": CONTEXT,
        "entries": 2 * 7,
        "source_sha256": sha256_of(made.gguf),
        "text_sha256": sha256_of(made.text),
        "warnings": [],
        "spec": "{}",
    }


def test_special_tokens_and_threads(made: Files, imatrix: Path, tmp_path: Path) -> None:
    """The number of threads changes nothing; whether special tokens are parsed does."""
    files = Files(tmp_path).put(made.gguf)
    for threads in (2, 3):
        files.compute(imatrix, threads)
        assert sha256_of(files.matrix) == sha256_of(made.matrix)
    record = files.text.with_suffix(".json")
    write_json(record, json.loads(record.read_text("utf-8")) | {"parse_special": False})
    files.compute(imatrix)
    assert sha256_of(files.matrix) != sha256_of(made.matrix)


@pytest.mark.parametrize("context", [40, 200, 700])
def test_a_killed_job_goes_on_and_comes_to_the_same(
    context: int,
    made: Files,
    imatrix: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Kill -9 of the job and llama-imatrix in the third block, of several chunks a batch and several batches a chunk."""
    expected = Files(tmp_path / "expected").put(made.gguf, 5600 // context, context)
    expected.compute(imatrix)
    monkeypatch.setattr(importance_matrix, "FIRST_BLOCK", 2 if context > 200 else 8)
    files = Files(tmp_path / "killed").put(made.gguf, 5600 // context, context)
    armed, once, begun = (tmp_path / name for name in ("armed", "once", "begun"))
    armed.touch()
    program = tmp_path / "llama-imatrix"
    # While it is armed, it hangs where it goes on a second time.
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *" --in-file "*)\n  if [ -e {once} ] && [ -e {armed} ]; then\n'
        f"    touch {begun}; exec sleep 100\n  fi\n  touch {once};;\nesac\n"
        f'exec {shlex.quote(str(imatrix))} "$@"\n'
    )
    program.chmod(0o755)
    code = "import sys, compute_imatrix; from ollamake import importance_matrix as m;"
    code += f"m.BLOCK_SECONDS, m.FIRST_BLOCK = 0, {importance_matrix.FIRST_BLOCK}; compute_imatrix.main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *files.arguments(program)], env=environment, start_new_session=True
    ) as job:
        try:
            deadline = time.monotonic() + 60
            while not begun.exists():
                assert job.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
    (partial,) = files.matrix.parent.glob(".*.partial")
    assert not files.matrix.exists()
    assert "calibration" not in partial.read_bytes().decode("latin-1")
    armed.unlink()
    files.compute(program)
    assert sha256_of(files.matrix) == sha256_of(expected.matrix)
    assert files.record() == expected.record()
    assert {path.name for path in files.matrix.parent.iterdir()} == {
        *("m.unquantized.gguf", "m.unquantized.json", "m.imatrix.gguf", "m.imatrix.json")
    }


@pytest.mark.parametrize("name", ['7, "x" é', "-m Ω'$(x)"])
def test_no_byte_depends_on_the_folder(name: str, made: Files, imatrix: Path, quantizer: Path, tmp_path: Path) -> None:
    """In a folder of an odd name, and with a model of one, in blocks: --in-file takes commas and quotes for its own."""
    files = Files(tmp_path / f"a, b/{name}", name).put(made.gguf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance_matrix, "BLOCK_SECONDS", 0.0)
        files.compute(imatrix)
    assert sha256_of(files.matrix) == sha256_of(made.matrix)
    assert GGUFReader(files.matrix).fields["imatrix.datasets"].contents() == ["calibration.txt"]
    output, record = files.quantize(quantizer, "Q4_K_M")
    fields = GGUFReader(output).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("quantize.")}
    assert found == {
        "quantize.imatrix.file": files.matrix.name,
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": CHUNKS,
    }
    assert record["imatrix"] == {"sha256": sha256_of(made.matrix), "chunks": CHUNKS}
    assert str(tmp_path).encode() not in output.read_bytes()


def test_a_quantization_with_a_matrix(made: Files, quantizer: Path, tmp_path: Path) -> None:
    """Other tensors than without; a type that needs one can be made; Ollama's own COPY keeps the digest."""
    plain = tmp_path / "plain.gguf"
    quantize(quantizer, made.gguf, plain, "Q4_K_M", 2)
    better, _ = made.quantize(quantizer, "Q4_K_M")
    assert tensors(plain).keys() == tensors(better).keys()
    changed = [name for name, data in tensors(better).items() if data != tensors(plain)[name]]
    assert len(changed) == 14
    small, record = made.quantize(quantizer, "IQ2_XS")
    assert (record["file_type"], record["sha256"]) == (20, sha256_of(small))
    assert record["imatrix"]["chunks"] == CHUNKS
    for output in (better, small):
        quantize(quantizer, output, tmp_path / "copy.gguf", "COPY", 1)
        assert sha256_of(tmp_path / "copy.gguf") == sha256_of(output)


def test_which_types_use_a_matrix(made: Files, quantizer: Path, tmp_path: Path) -> None:
    """A type that needs one is not made here without. The data are compared from the end, but for some of the embedding."""
    begin = GGUFReader(made.gguf).data_offset + 4096

    def differs(kind: str) -> bool:
        found = []
        for number, matrix in enumerate(([], ["--imatrix", str(made.matrix)])):
            output = tmp_path / f"{kind}.{number}.gguf"
            # Not by quantize(): gguf-py does not know all of the types.
            command = [str(quantizer), *matrix, str(made.gguf), str(output), type_argument(kind, "F16"), "1"]
            subprocess.run(command, check=True, capture_output=True)
            found.append(output.read_bytes())
        size = len(found[0]) - begin
        return found[0][-size:] != found[1][-size:]

    kinds = {name: kind for name, kind in QUANTIZATION_TYPES.items() if not kind.needs_imatrix}
    with ThreadPoolExecutor(2) as pool:
        assert dict(zip(kinds, pool.map(differs, kinds), strict=True)) == {
            name: kind.uses_imatrix for name, kind in kinds.items()
        }


@pytest.mark.parametrize("family", these(["qwen2, tied"], ["mixtral", "qwen2, tied"]))
def test_the_plan_has_the_size_to_the_byte(family: str, imatrix: Path, quantizer: Path, tmp_path: Path) -> None:
    """Of every type that is quick to make, for names that end in other blocks of 32 bytes than ghost.json's."""
    model = SmallModel(family, tmp_path / "model")
    model.folder.mkdir()
    model.save()
    gguf = model.convert()
    kinds = ["Q4_K_M", "Q4_0", "Q5_0", "Q8_0", "Q2_K_S", "IQ4_NL", "TQ1_0", "F16", "F32"]
    wanted = Wanted(types=kinds, memory=False)
    ghost = measure_merge(model.plan, model.base, [], family, "merge_plan.json", Programs(CONVERTER, quantizer), wanted)
    for name in ("m", "a-name-of-32-bytes-and-some-more", "ä" * 70):
        files = Files(tmp_path / name, name).put(gguf)
        files.compute(imatrix)
        planned = sizes_of_model(ghost, name, imatrix=True)
        assert planned["with_imatrix"] == {}
        wrong = []
        for kind in kinds if name == "m" else ("Q4_K_M",):
            size = planned["types"][kind]
            if "refused" in size:
                continue
            assert size["imatrix"] is QUANTIZATION_TYPES[kind].uses_imatrix
            output = tmp_path / "out.gguf"
            matrix = files.matrix if size["imatrix"] else None
            quantize(quantizer, gguf, output, type_argument(kind, ghost["outtype"]), 2, matrix)
            if output.stat().st_size != size["bytes"]:
                wrong.append((kind, size["bytes"], output.stat().st_size))
        assert wrong == []


def test_a_tokenizer_that_adds_an_end(made: Files, imatrix: Path, quantizer: Path, tmp_path: Path) -> None:
    """llama-imatrix by itself aborts for it; the text is the same but for its very end."""
    command = [str(quantizer), "--override-kv", "tokenizer.ggml.add_eos_token=bool:true"]
    subprocess.run([*command, str(made.gguf), str(tmp_path / "u.gguf"), "COPY"], check=True, capture_output=True)
    assert GGUFReader(tmp_path / "u.gguf").fields["tokenizer.ggml.add_eos_token"].contents() is True
    files = Files(tmp_path / "m").put(tmp_path / "u.gguf")
    files.compute(imatrix)
    assert sha256_of(files.matrix) == sha256_of(made.matrix)


def test_a_text_that_is_too_short(made: Files, imatrix: Path, tmp_path: Path) -> None:
    files = Files(tmp_path).put(made.gguf)
    files.text.write_text("road design", "utf-8")
    recorded(files.text)
    with pytest.raises(OllamakeError, match=r"llama-imatrix failed on .* \(exit code 1\)"):
        files.compute(imatrix)
    assert not files.matrix.exists()


def test_a_text_of_fewer_chunks_than_its_record_says(made: Files, imatrix: Path, tmp_path: Path) -> None:
    files = Files(tmp_path).put(made.gguf, chunks=100_000)
    with pytest.raises(OllamakeError, match=rf"expected 100000 chunks of {CONTEXT} tokens"):
        files.compute(imatrix)


def test_activations_that_are_not_finite_are_an_error(made: Files, imatrix: Path, tmp_path: Path) -> None:
    """llama-imatrix ends before its log has said why, now and then."""
    files = Files(tmp_path).put(made.gguf)
    (norm,) = [tensor for tensor in GGUFReader(files.gguf, "r+").tensors if tensor.name == "blk.1.ffn_norm.weight"]
    norm.data[7] = np.nan
    norm.data.base.flush() if hasattr(norm.data.base, "flush") else None
    recorded(files.gguf)
    with pytest.raises(OllamakeError, match=r"blk\.1\.ffn_(gate|up)\.weight|exit code 1"):
        files.compute(imatrix)
    assert not files.matrix.exists()
