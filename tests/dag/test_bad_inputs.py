"""Bad input ends in one clear message, with exit code 1, before heavy work and with nothing half-made.

Tables of what may be wrong with configurations, adapters, bases, texts, tools and servers: test_bad_*.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dag_build import Build, save_small_adapter
from safetensors.torch import load_file, save_file
from snakemake_runs import REPOSITORY, run_snakemake

pytestmark = pytest.mark.faults

Edit = Callable[[Build], None]


def not_a_number(build: Build) -> None:
    file = build.folder / "adapter/adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(file).items()}, file)


def register_twice(build: Build) -> None:
    build.config["models"]["other"] = build.model() | {"ollama": {"name": "library/small"}}


def set_model(**changes: Any) -> Edit:
    return lambda build: build.model().update(changes)


def rename(name: str) -> Edit:
    return lambda build: build.config.update(models={name: build.model()})


CASES: dict[str, tuple[Edit, list[str]]] = {
    "two models of one name": (
        register_twice,
        ["models.small (Q4_K_M) and models.other (Q4_K_M) would both be registered as"],
    ),
    "unknown quantization": (
        set_model(quantizations=["Q4_K_N"]),
        ["models.small.quantizations[0]", "'Q4_K_N'", "Q4_K_M"],
    ),
    "unknown key": (set_model(quantisations=["Q8_0"]), ["models.small.quantisations: unknown key", "quantizations"]),
    **{f"model name {name}": (rename(name), [repr(name), "lower-case"]) for name in ("../x", "a b", "UPPER", "日本")},
}


def refused(build: Build, words: list[str], **environment: str) -> str:
    """Run the build, which must end in exit code 1 and a message with all of ``words``; return what was printed."""
    build.write_config()
    began = time.monotonic()
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "2", "all", folder=build.folder, **environment)
    print(f"{time.monotonic() - began:.1f} s\n{done.stdout}")
    assert done.returncode == 1
    for word in words:
        assert word in done.stdout
    assert "Traceback" not in done.stdout
    # The message stands at the end, where it is seen, not above what Snakemake says of the failed job.
    assert len(done.stdout[done.stdout.rindex(words[0]) :].splitlines()) < 20
    assert not list(build.folder.glob("results/**/*.safetensors"))
    assert not list(build.folder.glob("results/**/*.gguf"))
    assert not list(build.folder.glob("results/**/*.tmp"))
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_refused(fresh: Build, case: str) -> None:
    edit, words = CASES[case]
    edit(fresh)
    refused(fresh, words)


def test_no_compiler(fresh: Build, tmp_path: Path) -> None:
    """Neither llama-quantize nor a compiler on PATH: said before the source is even fetched."""
    tools = tmp_path / "tools"
    tools.mkdir()
    hidden = re.compile(r"(.*-)?(cc|gcc|c\+\+|g\+\+|clang)([+-].*)?|python.*|llama-.*")
    for file in (file for folder in os.environ["PATH"].split(os.pathsep) for file in sorted(Path(folder).glob("*"))):
        if not hidden.fullmatch(file.name) and not (tools / file.name).is_symlink():
            (tools / file.name).symlink_to(file)
    # Not a link: Python finds its virtual environment by where it was called.
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "python").chmod(0o755)
    del fresh.config["tools"]
    environment = {"PATH": str(tools), "CC": "", "CXX": ""}
    refused(fresh, ["no C compiler found", "llama-quantize on PATH", "tools.llama_cpp"], **environment)
    assert not (fresh.folder / "resources/llama.cpp").exists()


def test_not_enough_disk(fresh: Build, tmp_path: Path) -> None:
    """The working directory on a filesystem of 40 MB, mounted in a namespace of its own, for which one need not be root."""
    fresh.write_config()
    disk = tmp_path / "disk"
    disk.mkdir()
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1", "all"]
    program = """
        mount -t tmpfs -o size=40m tmpfs "$1" && cp -r "$2/." "$1" && cd "$1" || exit 99
        "${@:3}" --configfile mine.yaml; code=$?
        find results -name "*.safetensors" -o -name "*.gguf" -o -name "*.tmp"
        exit $code"""
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        program,
        "-",
        str(disk),
        str(fresh.folder),
        *snakemake,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 1, done.stdout
    for words in ("not enough disk for building small", "GB free", "keep.merged"):
        assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert not re.search(r"^results/.*", done.stdout, re.MULTILINE), done.stdout


def test_values_that_are_no_numbers_are_found_by_the_merge(fresh: Build) -> None:
    save_small_adapter(fresh.folder / "base", fresh.folder / "adapter")
    not_a_number(fresh)
    fresh.write_config()
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "1", "all", folder=fresh.folder)
    assert done.returncode == 1
    assert "values that are not numbers" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list(fresh.folder.glob("results/**/*.gguf"))


def test_the_demo_with_an_unreachable_server_is_refused_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "models: {rag-finetuned: {base: resources/demo/base, adapter: resources/demo/adapter}}\n"
        "ollama: {target: server, host: 'http://127.0.0.1:1'}\n"
    )
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "2", "all", folder=tmp_path)
    assert done.returncode == 1
    assert "no Ollama server answers at http://127.0.0.1:1" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "resources").exists()
