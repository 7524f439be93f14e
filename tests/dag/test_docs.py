"""Documentation that follows from the code is current, and the commands it shows exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from snakemake_runs import REPOSITORY, run_snakemake

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_generated_parts_are_current() -> None:
    command = [sys.executable, "tests/generate_docs.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_two_commands() -> None:
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert commands == [
        "pip install -r requirements.txt && snakemake --cores 1 all",
        "pip install -r requirements-dev.txt && pytest",
    ]


def test_the_five_lines_are_a_configuration() -> None:
    text = re.search(r"```yaml\n# mine\.yaml\n(.*?)```", README, re.DOTALL)
    assert text is not None
    assert len(text[1].splitlines()) == 5
    assert yaml.safe_load(text[1])["models"]["my-model"]["quantizations"] == ["Q6_K", "Q4_K_M"]


def test_the_table_of_what_it_does_is_complete() -> None:
    """It names every rule that runs a script and every script, and tests that are there."""
    text = re.search(r"<!-- the mission -->\n(.*?)<!-- end of the mission -->", README, re.DOTALL)
    assert text is not None
    named = set(re.findall(r"`(\w+)(?:\.py)?`", text[1]))
    scripts = {file.stem for file in (REPOSITORY / "scripts").glob("*.py")}
    of_a_rule = {"estimate_times": "draw_plan"}
    assert {of_a_rule.get(script, script) for script in scripts} <= named
    rules = "".join(file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "rules").glob("*.smk")))
    assert named & scripts | set(re.findall(r"^(?:rule|checkpoint) (\w+):", rules, re.MULTILINE)) >= named
    tests = re.findall(r"tests/\S+?\.py", text[1])
    assert len(set(tests)) > 30
    assert [test for test in tests if not (REPOSITORY / test).is_file()] == []


@pytest.mark.parametrize(
    "target",
    ["all", "merged", "gguf", "modelfiles", "registered", "results/rag-finetuned/gguf/rag-finetuned.Q8_0.gguf"],
)
def test_targets(target: str) -> None:
    done = run_snakemake("-n", target, folder=REPOSITORY)
    assert done.returncode == 0, done.stdout


def test_style() -> None:
    """Snakemake's own linter and formatter have nothing to say."""
    lint = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stderr
    assert len((REPOSITORY / "Snakefile").read_text(encoding="utf-8").splitlines()) < 40
    for rules in (REPOSITORY / "rules").glob("*.smk"):
        assert rules.name == "common.smk" or "def " not in rules.read_text(encoding="utf-8")
