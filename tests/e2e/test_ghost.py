"""What is measured without weights, against files and servers that have them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from campaigns import these
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from ghost_models import CONVERTER, FAMILIES, SmallModel
from snakemake_runs import REPOSITORY

from ollamake.errors import OllamakeError
from ollamake.gguf_quantization import type_argument
from ollamake.ghost import make_ghost, types_by_dry_run, write_ghost_imatrix
from ollamake.ghost_checkpoint import ghost_of_shape
from ollamake.ghost_measurement import Programs, Wanted, measure_merge, measure_shape
from ollamake.importance_sizes import IMATRIX_FILE
from ollamake.quantization_types import QUANTIZATION_TYPES
from ollamake.shape import Shape, read_shape

SHAPES = REPOSITORY / "config/shapes"


SLOW = frozenset(name for name in QUANTIZATION_TYPES if name.startswith(("IQ1", "IQ2", "IQ3")))
"""Types for which llama-quantize computes for seconds, however small the model."""
ALL_WRITTEN = ("qwen2, tied", "qwen2, odd rows")
"""Families of which files of these types are written, too; in the latter other types take their place."""
OF_EVERY_RUN = ("llama", "gemma3, sliding window", "qwen2, odd rows")


@dataclass(frozen=True)
class Measured:
    model: SmallModel
    gguf: Path
    ghost: dict[str, Any]


@pytest.fixture(scope="module")
def programs(llama_cpp: Callable[[str], Path]) -> Programs:
    return Programs(CONVERTER, llama_cpp("llama-quantize"), llama_cpp("llama-fit-params"))


@pytest.fixture(scope="module")
def measured(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """Return a function that gives a family's model with its GGUF and ghost.json; each is made once."""
    made: dict[str, Measured] = {}

    def of_family(family: str) -> Measured:
        if family not in made:
            model = SmallModel(family, tmp_path_factory.mktemp("ghost"))
            model.save()
            wanted = Wanted(contexts=[512], parallel=[3])
            with ThreadPoolExecutor(2) as pool:
                gguf = pool.submit(model.convert)
                ghost = measure_merge(model.plan, model.base, [], family, "merge_plan.json", programs, wanted)
                made[family] = Measured(model, gguf.result(), ghost)
        return made[family]

    return of_family


@pytest.mark.parametrize("family", these(OF_EVERY_RUN, FAMILIES))
def test_sizes_are_those_of_the_files_to_the_byte(
    family: str, measured: Callable[[str], Measured], programs: Programs
) -> None:
    one = measured(family)
    ghost = one.ghost
    # GGUFReader has the columns first.
    tensors = [(tensor.name, tuple(map(int, tensor.shape[::-1]))) for tensor in GGUFReader(one.gguf).tensors]
    write_ghost_imatrix(one.gguf.with_name(IMATRIX_FILE), tensors)
    assert ghost["unquantized_bytes"] == one.gguf.stat().st_size
    assert ghost["types"].keys() == QUANTIZATION_TYPES.keys()
    cases = [
        (name, sizes)
        for name in QUANTIZATION_TYPES
        for sizes in (ghost["types"][name], ghost["with_imatrix"].get(name))
        if sizes is not None and (family in ALL_WRITTEN or name not in SLOW)
    ]
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda case: quantized_size(programs.quantize, one, *case), cases))
    wrong = [
        (name, sizes, size)
        for (name, sizes), size in zip(cases, written, strict=True)
        if size != sizes.get("bytes", sizes.get("refused"))
    ]
    assert wrong == []


@pytest.mark.parametrize("family", these(OF_EVERY_RUN, [family for family in FAMILIES if family not in ALL_WRITTEN]))
def test_slow_types_are_those_that_the_file_itself_would_get(
    family: str, measured: Callable[[str], Measured], programs: Programs
) -> None:
    """What is not written above: llama-quantize says of the file with weights what it says of the one without."""
    one = measured(family)
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in GGUFReader(one.gguf).tensors}
    imatrix = one.gguf.with_name("slow.imatrix.gguf")
    write_ghost_imatrix(imatrix, list(shapes.items()))
    for name in sorted(SLOW):
        sizes = one.ghost["types"][name]
        argument = type_argument(name, one.ghost["outtype"])
        found = types_by_dry_run(programs.quantize, one.gguf, argument, imatrix if sizes["imatrix"] else None)
        assert not isinstance(found, str), found
        assert found.types.keys() == shapes.keys()
        padded = 0
        for tensor, kind in found.types.items():
            elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
            padded += -(-math.prod(shapes[tensor]) // elements * size // 32) * 32
        assert padded == sum(sizes["block_bytes"]) + sizes["other_bytes"] + sizes["embedding_bytes"]


def quantized_size(program: Path, one: Measured, name: str, sizes: dict[str, Any]) -> int | str:
    """Return the bytes that llama-quantize writes for a type, or its words of refusal."""
    with_imatrix = sizes.get("imatrix", False)
    output = one.gguf.with_name(f"{name}.{with_imatrix}.gguf")
    command = [str(program.resolve()), *(["--imatrix", IMATRIX_FILE] if with_imatrix else []), one.gguf.name]
    # In the folder of the importance matrix, whose path goes into the file.
    done = subprocess.run(
        [*command, str(output), type_argument(name, one.ghost["outtype"]), "1"],
        cwd=one.gguf.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        found = re.search(r"failed to quantize: (.+)", done.stderr)
        return found[1] if found else done.stderr
    size = output.stat().st_size
    output.unlink()
    return size


@pytest.mark.parametrize(
    ("family", "kv", "slots"), [("llama", "f16", 3), ("llama", "q8_0", 1), ("gemma3, sliding window", "f16", 2)]
)
def test_memory_is_that_of_llama_server(
    family: str, kv: str, slots: int, measured: Callable[[str], Measured], llama_cpp: Callable[[str], Path]
) -> None:
    one, context = measured(family), 8192
    assert one.ghost["memory"]["source"] == "llama-fit-params"
    (row,) = [
        row
        for row in one.ghost["memory"]["rows"]
        if (row["kv"], row["parallel"], row["context"]) == (kv, slots, context)
    ]
    buffers = server_buffers(llama_cpp("llama-server"), one.gguf, kv, slots, context)
    assert row["kv_mib"] == pytest.approx(buffers["KV"], abs=1)
    expected = buffers["model"] + buffers["KV"] + buffers["compute"]
    predicted = one.ghost["unquantized_bytes"] / 2**20 + row["kv_mib"] + row["compute_mib"]
    assert abs(predicted - expected) <= 0.03 * expected + 8


def server_buffers(program: Path, gguf: Path, kv: str, slots: int, context: int) -> dict[str, float]:
    """Start llama-server as Ollama does, and return the MiB of its buffers of each kind once it is ready."""
    command = [str(program), "-m", str(gguf), "--port", "0", "--no-warmup", "-lv", "4", "--no-repack", "-fit", "off"]
    command += [
        "-c",
        str(context * slots),
        "-np",
        str(slots),
        "-ctk",
        kv,
        "-ctv",
        kv,
        "-fa",
        "on",
        "-b",
        "512",
        "-ub",
        "512",
    ]
    log = gguf.with_name("server.log")
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as child:
        try:
            deadline = time.monotonic() + 60
            while "listening on" not in (said := log.read_text(errors="replace")):
                assert child.poll() is None, said[-3000:]
                assert time.monotonic() < deadline, said[-3000:]
                time.sleep(0.05)
        finally:
            child.terminate()
    sizes = re.findall(r"(model|KV|compute) buffer size = +([\d.]+) MiB", said)
    return {kind: sum(float(size) for found, size in sizes if found == kind) for kind in ("model", "KV", "compute")}


def test_the_weights_need_not_be_there(measured: Callable[[str], Measured], programs: Programs, tmp_path: Path) -> None:
    """Of a base that has lost its weights since the plan was made, all is measured as before."""
    one = measured("llama")
    for file in one.model.base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    wanted = Wanted(contexts=[512], parallel=[3])
    assert measure_merge(one.model.plan, tmp_path, [], "llama", "merge_plan.json", programs, wanted) == one.ghost


def test_no_byte_of_weights_is_read_or_written(programs: Programs, tmp_path: Path) -> None:
    """65 GB whose shards are cut off behind their headers are converted, and what comes out is a hole."""
    (tmp_path / "merged").mkdir()
    outtype = ghost_of_shape(read_shape(SHAPES / "Qwen/Qwen2.5-32B-Instruct.yaml"), tmp_path / "merged")
    for shard in (tmp_path / "merged").glob("*.safetensors"):
        with shard.open("r+b") as file:
            file.truncate(8 + int.from_bytes(file.read(8), "little"))
    ghost = make_ghost(programs.converter, tmp_path / "merged", outtype, "32B", tmp_path, tokenizer=False)
    assert not isinstance(types_by_dry_run(programs.quantize, ghost.sizes, "Q4_K_M"), str)
    status = ghost.sizes.stat()
    assert status.st_size > 65e9
    assert status.st_blocks * 512 < 200_000


def test_an_unknown_architecture_ends_in_the_converters_words(programs: Programs) -> None:
    shape = Shape("org/name", "", {"architectures": ["UnheardOfForCausalLM"]}, (("a.weight", "F16", (8, 8)),), None)
    with pytest.raises(OllamakeError, match="cannot convert org/name: Model UnheardOfForCausalLM is not supported"):
        measure_shape(shape, programs)
