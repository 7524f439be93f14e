"""What all tests share: llama.cpp's programs as the workflow itself builds them, and how tests share the cores.

A whole run takes two cores or more, and up to four processes (pytest-xdist), one more than cores: tests wait for servers,
disks and each other. Files that are named are run in this process.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import background_builds
import pytest
from made_once import MadeOnce
from snakemake_runs import LLAMA_CPP
from work_units import WorkUnits, position

from ollamake.llama_cpp_source import usable_cores

# A shell that starts the tests in the background lets them, and all that they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_WORKERS = 4
"""Each has its own fixtures and a gigabyte of libraries."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests besides this one; 0: this one does."""
    named_files = all(".py" in argument for argument in config.args)
    cores = usable_cores()
    return 0 if named_files or cores == 1 else min(cores + 1, MOST_WORKERS)


def pytest_xdist_setupnodes() -> None:
    """Let idle threads sleep, here and in programs that tests start: waiting busily, they keep the cores from others."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WorkUnits:
    """Return what hands the tests out to the processes."""
    return WorkUnits(config, log)


def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    """Begin to compile what the tests need, while those that need nothing run."""
    background_builds.begin(ids)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests into the order in which they are handed out; the processes must agree on it."""
    items.sort(key=lambda item: position(item.nodeid))


def pytest_sessionfinish() -> None:
    """Leave no compiler behind."""
    background_builds.end()


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[[str], Path]:
    """Return a function that gives a program of llama.cpp, built by the workflow's own rule where it is not yet."""
    return background_builds.llama_cpp_program


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """What gives folders that one process makes for all."""
    return MadeOnce.of(tmp_path_factory)


@pytest.fixture(scope="session")
def programs(llama_cpp: Callable[[str], Path], made_once: MadeOnce) -> Path:
    """A folder with llama.cpp's programs and source, as a user may name it in tools.llama_cpp."""

    def copy(folder: Path) -> None:
        (folder / "bin").mkdir(parents=True)
        for program in background_builds.OF_A_BUILD:
            shutil.copy2(llama_cpp(program), folder / "bin")
        (folder / "source").symlink_to(LLAMA_CPP / "source")

    return made_once("llama.cpp", copy)
