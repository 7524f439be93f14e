"""What profiles/slurm says of the rules, and what the rules say of themselves, fits; no SLURM is needed to see that.

How it works on a SLURM is in tests/e2e/test_slurm.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from dag_build import Build
from snakemake.api import SnakemakeApi
from snakemake.rules import Rule
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
from snakemake_plugins import with_plugins
from snakemake_runs import REPOSITORY

PROFILE = REPOSITORY / "profiles/slurm/profile.yaml"
PINS = REPOSITORY / "requirements-slurm.txt"


@pytest.fixture(scope="module")
def rules() -> dict[str, Rule]:
    """Name -> rule, as Snakemake reads the workflow, of those that run something."""
    with (
        SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as snakemake,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(REPOSITORY)
        api = snakemake.workflow(ResourceSettings(), ConfigSettings(), snakefile=REPOSITORY / "Snakefile")
        workflow = api._get_workflow()
        workflow.include(REPOSITORY / "Snakefile", overwrite_default_target=True)
        return {rule.name: rule for rule in workflow.rules if not rule.norun}


def is_local(rule: Rule) -> bool:
    """Return whether a rule runs on the submit host."""
    return rule.name in rule.workflow._localrules


@pytest.fixture(scope="module")
def profile() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    return content


def test_it_names_the_rules_that_are_submitted(rules: dict[str, Rule], profile: dict[str, Any]) -> None:
    """All of them and no others: each with a time, and with one more try."""
    submitted = {name for name, rule in rules.items() if not is_local(rule)}
    assert {"merge_shard", "convert_to_gguf", "quantize", "evaluate_quality"} < submitted < rules.keys()
    assert profile["set-resources"].keys() == submitted
    assert set(profile["preemptible-rules"]) == submitted
    assert profile["preemptible-retries"] == 1
    for name in submitted:
        runtime = profile["set-resources"][name]["runtime"]
        assert re.fullmatch(r"\d+ \* attempt", runtime), (name, runtime)
        assert {"mem_mb", "_cores"} <= set(rules[name].resources), name


def test_what_talks_to_ollama_or_must_be_first_stays_here(rules: dict[str, Rule]) -> None:
    asking = {name for name, rule in rules.items() if "ollama" in rule.resources}
    assert {"register", "check_template", "ask_questions", "take_base_from_ollama", "write_rag_config"} <= asking
    first = {name for name, rule in rules.items() if "alone" in rule.resources}
    assert {"check_inputs", "plan_merge", "measure_ghost", "plan_memory"} <= first
    assert all(is_local(rules[name]) for name in asking | first | {"fetch_shape", "fetch_llama_cpp", "verify"})
    # Where it runs here it takes all cores; on a submit host Snakemake counts no cores.
    cores = {name: rule.resources["_cores"] for name, rule in rules.items()}
    always = {name for name, asked in cores.items() if not asked.is_evaluable() and asked.value == 1_000_000}
    assert first - always == {"measure_ghost", "plan_memory"}, "of a base on the hub they run beside its downloads"
    assert always < first


def test_the_limits_are_where_they_hold(profile: dict[str, Any]) -> None:
    """profiles/default wins over what is given with --profile, key by key."""
    default = yaml.safe_load((REPOSITORY / "profiles/default/profile.yaml").read_text(encoding="utf-8"))
    assert set(default["resources"]) == {"ollama=1", "alone=1", "compiling=1", "in_turn=1", "streams=4"}
    assert not default.keys() & profile.keys()
    assert set(default["set-resource-scopes"]) == {"streams=local", "in_turn=local"}


def test_who_builds_on_a_cluster_and_then_here_builds_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", with_plugins()["PYTHONPATH"])
    assert build.planned("all", "--profile", str(PROFILE.parent), "--configfile", "mine.yaml") == {}


def test_its_executor_is_pinned_once() -> None:
    """In a file of its own, which the tests take, too; README and example name it."""
    pins = PINS.read_text(encoding="utf-8")
    assert "snakemake-executor-plugin-slurm==" in pins
    assert (
        f"-r ../{PINS.name}" in (REPOSITORY / "tests/requirements-plugins.txt").read_text(encoding="utf-8").splitlines()
    )
    for text in (PROFILE, REPOSITORY / "README.md", REPOSITORY / "config/examples/slurm.yaml"):
        said = text.read_text(encoding="utf-8")
        assert f"pip install -r {PINS.name}" in said
        assert "snakemake --profile profiles/slurm" in said
