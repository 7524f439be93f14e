"""The table of quantization types against the real llama-quantize."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dag_build import save_small_base
from snakemake_runs import LLAMA_CPP

from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_conversion import convert
from ollamake.gguf_quantization import quantize
from ollamake.gguf_record import gguf_record
from ollamake.quantization_types import QUANTIZATION_TYPES


@pytest.fixture(scope="module")
def program(llama_cpp: Callable[[str], Path]) -> Path:
    return llama_cpp("llama-quantize")


@pytest.fixture(scope="module")
def gguf(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    save_small_base(folder / "base")
    convert(LLAMA_CPP / "source/convert_hf_to_gguf.py", folder / "base", "f16", "small", folder / "small.gguf")
    return folder / "small.gguf"


def test_the_names_are_the_programs_own(program: Path) -> None:
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    names = re.findall(r"^ +(?:\d+ +or +)?([A-Z0-9_]+) +:", text, re.MULTILINE)
    assert set(names) - {"COPY"} == set(QUANTIZATION_TYPES)


@pytest.mark.parametrize("name", QUANTIZATION_TYPES)
def test_needs_an_importance_matrix_or_not(program: Path, gguf: Path, name: str) -> None:
    output = gguf.with_name(f"{name}.gguf")
    if QUANTIZATION_TYPES[name].needs_imatrix:
        with pytest.raises(OllamakeError, match="imatrix"):
            quantize(program, gguf, output, name, 2)
    else:
        quantize(program, gguf, output, name, 2)
        record = gguf_record(output, output.name, name)
        assert (record["size"], record["parameters"]) == (
            output.stat().st_size,
            gguf_record(gguf, "s", "F16")["parameters"],
        )
        output.unlink()


@pytest.mark.parametrize("name", ["Q4_K_M", "COPY"])
def test_what_went_through_llama_quantize_keeps_its_digest_when_ollama_copies_it(
    program: Path, gguf: Path, name: str
) -> None:
    """Ollama 0.30 and later rewrites a GGUF with `llama-quantize IN OUT COPY`; the digest must not change by that."""
    once, twice = gguf.with_name(f"once.{name}.gguf"), gguf.with_name(f"twice.{name}.gguf")
    quantize(program, gguf, once, name, 2)
    quantize(program, once, twice, "COPY", 1)
    assert sha256_of(once) == sha256_of(twice)


def test_the_same_bytes_for_any_number_of_threads(program: Path, gguf: Path) -> None:
    outputs = [gguf.with_name(f"threads.{threads}.gguf") for threads in (1, 2, 5)]
    for output, threads in zip(outputs, (1, 2, 5), strict=True):
        quantize(program, gguf, output, "Q4_K_M", threads)
    assert len({sha256_of(output) for output in outputs}) == 1
