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
