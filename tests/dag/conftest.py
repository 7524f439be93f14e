"""Fixtures of the tests of the graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dag_build import Build, save_small_adapter, save_small_base
from made_once import MadeOnce
from snakemake_runs import REPOSITORY


@pytest.fixture(scope="session")
def begun(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Base, adapter and configuration, nothing built yet. Tests that edit take a copy."""
    folder = tmp_path_factory.mktemp("begun") / "work"
    save_small_base(folder / "base")
    save_small_adapter(folder / "base", folder / "adapter")
    model = {
        "base": "base",
        "adapter": "adapter",
        "quantizations": ["Q4_K_M", "Q8_0"],
        "ollama": {"system": "道路設計の専門家。", "parameters": {"temperature": 0.1}},
    }
    config = {
        "models": {"small": model},
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(programs)},
        "hardware": {"gpus": [{"name": "RTX 4090", "memory_gib": 24}], "ram_gib": 64},
    }
    return Build(folder, config)


@pytest.fixture
def fresh(begun: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of what is there before the first build, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(begun.folder, folder)
    yield Build(folder, json.loads(json.dumps(begun.config)))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def finished(begun: Build, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build. Tests that edit take a copy."""

    def finish(folder: Path) -> None:
        shutil.copytree(begun.folder, folder / "work")
        build = Build(folder / "work", begun.config)
        build.write_config()
        build.run("--cores", "2", "all")

    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(made_once("finished build", finish) / "work", folder, symlinks=True)
    return Build(folder, begun.config)


@pytest.fixture
def build(finished: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of the finished build, with its times, to be edited."""
    folder = tmp_path / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    yield Build(folder, json.loads(json.dumps(finished.config)))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def own_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow, to change its code."""
    folder = tmp_path_factory.mktemp("code") / "ollamake"
    folder.mkdir()
    for name in ("Snakefile", "rules", "scripts", "config", "envs", "profiles"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def finished_with_own_code(
    finished: Build, own_code: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], tuple[Build, Path]]:
    """A build finished with the copy of the workflow; only dry runs are made in it, so all tests share one."""
    folder = tmp_path_factory.mktemp("own") / "work"
    for name in ("base", "adapter"):
        shutil.copytree(finished.folder / name, folder / name)
    build = Build(folder, finished.config)
    build.write_config()
    build.run("--cores", "2", "--snakefile", str(own_code / "Snakefile"), "all")
    return lambda: (build, own_code)
