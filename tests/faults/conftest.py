"""Fixtures of the tests with injected faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from dag_build import Build
from small_build import FEW_JOBS, final_bytes, small_inputs


@pytest.fixture(scope="session")
def undisturbed(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A small build that nothing disturbed; what has a copy of its inputs must come to the same bytes."""
    build = small_inputs(tmp_path_factory.mktemp("undisturbed") / "work", programs, without=FEW_JOBS)
    build.run("--cores", "1", "all")
    return build


@pytest.fixture(scope="session")
def expected(undisturbed: Build) -> dict[str, str]:
    """The bytes that every build of these inputs must come to."""
    return final_bytes(undisturbed.folder)
