"""Sizes measured from shapes, against those of GGUFs that others made of the weights and published."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import these
from snakemake_runs import LLAMA_CPP, REPOSITORY

from ollamake.ghost_measurement import Programs, Wanted, measure_shape
from ollamake.shape import read_shape, shipped_names, shipped_shape

SHAPES = REPOSITORY / "config/shapes"
TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
WITHIN = 0.001
"""Templates and makers' own keys are some hundred bytes, two decimals of a model card up to 5 MB."""


def published() -> list[dict[str, Any]]:
    """Return the published files of these types that are made as llama.cpp makes them now; BF16 is as large as F16."""
    files = yaml.safe_load((REPOSITORY / "tests/published_gguf_sizes.yaml").read_text(encoding="utf-8"))["files"]
    files = [file | {"type": "F16" if file["type"] == "BF16" else file["type"]} for file in files]
    return [file for file in files if file["type"] in TYPES and file.get("comparable", True)]


NAMES = shipped_names(SHAPES)
OF_A_KIND = tuple({read_shape(SHAPES / f"{name}.yaml").config["model_type"]: name for name in NAMES}.values())
"""One of each architecture, which every run measures; the others by `pytest -m campaign`."""


@pytest.fixture(scope="module")
def measured(llama_cpp: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives a model's ghost.json without memory; they are measured two at a time, some 5 s each."""
    programs = Programs(LLAMA_CPP / "source/convert_hf_to_gguf.py", llama_cpp("llama-quantize"))
    wanted = Wanted(types=TYPES, memory=False)

    def measure(name: str) -> dict[str, Any]:
        path = shipped_shape(name, SHAPES)
        assert path is not None
        return measure_shape(read_shape(path), programs, wanted)

    @cache
    def of_all(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(measure, names), strict=True))

    others = tuple(name for name in NAMES if name not in OF_A_KIND)
    return lambda name: of_all(OF_A_KIND if name in OF_A_KIND else others)[name]


def test_every_model_and_type_is_compared_with_something() -> None:
    files = published()
    assert {file["model"] for file in files} == set(NAMES)
    assert {file["type"] for file in files} == set(TYPES)


@pytest.mark.parametrize("name", these(OF_A_KIND, NAMES))
def test_sizes_are_the_published_ones(name: str, measured: Callable[[str], dict[str, Any]]) -> None:
    ghost = measured(name)
    wrong = []
    for file in published():
        if file["model"] != name:
            continue
        sizes = ghost["types"][file["type"]]
        if file.get("imatrix"):
            sizes = ghost["with_imatrix"].get(file["type"], sizes)
        expected = file.get("bytes") or file["gigabytes"] * 1e9
        if abs(sizes["bytes"] / expected - 1) > WITHIN:
            wrong.append((file["source"], expected, sizes["bytes"]))
    assert wrong == []
