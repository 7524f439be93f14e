"""Fixtures of the tests with injected faults; all of these tests are marked `faults`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from dag_build import Build
from faulty_disk import compile_faulty_writes
from outcomes import Checked, Outcome, add, is_good
from small_build import FEW_JOBS, copied, final_bytes, small_inputs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("faults")


@pytest.fixture(scope="session")
def inputs(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The inputs of a small build of few jobs; nothing is made of them here. Tests take copies, which have their times."""
    return small_inputs(tmp_path_factory.mktemp("inputs") / "work", programs, without=FEW_JOBS)


@pytest.fixture(scope="session")
def undisturbed(inputs: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """These inputs, built, and nothing disturbed it. Tests that edit take a copy."""
    build = copied(inputs, tmp_path_factory.mktemp("undisturbed") / "work")
    build.run("--cores", "1", "all")
    return build


@pytest.fixture(scope="session")
def expected(undisturbed: Build) -> dict[str, str]:
    """The bytes that every build of these inputs must come to."""
    return final_bytes(undisturbed.folder)


@pytest.fixture
def checked() -> Checked:
    """Return a function that wants all outcomes to be good ones.

    Where the environment variable OUTCOMES names a file they are added to it, for write_table.py.
    """

    def check(outcomes: Sequence[Outcome]) -> None:
        if "OUTCOMES" in os.environ:
            add(Path(os.environ["OUTCOMES"]), outcomes)
        assert [outcome for outcome in outcomes if not is_good(outcome)] == []

    return check


@pytest.fixture(scope="session")
def faulty_writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for LD_PRELOAD by which files meet faults."""
    return compile_faulty_writes(tmp_path_factory.mktemp("faulty"))
