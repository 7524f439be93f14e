"""A build that is killed or told to end again and again comes to the bytes of one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from dag_build import Build
from interruptions import KILLS, SIGNALS, Interrupter, chain
from outcomes import Checked
from small_build import copied, final_bytes, small_inputs

SHORT = ("check_overlap", "choose_template", "plan_bitsandbytes")
"""Rules that the other chains hardly meet. Jobs of release_logits and release_merged, an `echo`, are over too soon for any."""


def test_a_few(inputs: Build, expected: dict[str, str], checked: Checked, tmp_path: Path) -> None:
    """Each kind once or twice."""
    kinds = (*KILLS, *SIGNALS)
    build = copied(inputs, tmp_path / "work")
    outcomes = chain(build, Interrupter(1, kinds, share=1.0), 2 * len(kinds), expected, tmp_path / "said")
    checked(outcomes)
    assert {outcome.kind for outcome in outcomes} == set(kinds)


@pytest.fixture(scope="module")
def whole(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, dict[str, str]]:
    """Inputs of the build that goes over nearly all rules, and its bytes."""
    inputs = small_inputs(tmp_path_factory.mktemp("whole") / "work", programs)
    build = copied(inputs, tmp_path_factory.mktemp("whole") / "undisturbed")
    build.run("--cores", "1", "all")
    return inputs, final_bytes(build.folder)


@pytest.mark.campaign
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("seed", range(1, 6))
def test_40_kills(whole: tuple[Build, dict[str, str]], checked: Checked, tmp_path: Path, seed: int) -> None:
    inputs, expected = whole
    checked(chain(copied(inputs, tmp_path / "work"), Interrupter(seed, KILLS), 40, expected, tmp_path / "said"))


@pytest.mark.campaign
@pytest.mark.timeout(4 * 3600)
def test_kills_of_short_jobs(whole: tuple[Build, dict[str, str]], checked: Checked, tmp_path: Path) -> None:
    inputs, expected = whole
    interrupter = Interrupter(9, KILLS, short=SHORT)
    outcomes = chain(copied(inputs, tmp_path / "work"), interrupter, 20, expected, tmp_path / "said")
    checked(outcomes)
    assert {outcome.rule for outcome in outcomes} == set(SHORT)


@pytest.mark.campaign
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("seed", range(6, 9))
def test_signals(inputs: Build, expected: dict[str, str], checked: Checked, tmp_path: Path, seed: int) -> None:
    interrupter = Interrupter(seed, tuple(SIGNALS))
    checked(chain(copied(inputs, tmp_path / "work"), interrupter, 40, expected, tmp_path / "said"))
