"""Configurations that cannot be meant: each is refused in one message with the line or the key, and nothing in it is run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_configurations import CASES
from bad_inputs import LIMIT, refused, tree
from campaigns import one_in
from dag_build import Build
from snakemake_runs import REPOSITORY, run_snakemake

pytestmark = pytest.mark.faults


@pytest.fixture
def empty(tmp_path: Path) -> Callable[[str | bytes], Build]:
    """Return a function that makes a working directory with nothing but a configuration, and a way to see what is run."""

    def with_text(text: str | bytes) -> Build:
        (tmp_path / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return Build(tmp_path, {})

    return with_text


@pytest.mark.parametrize("case", one_in(3, CASES))
def test_refused(empty: Callable[[str | bytes], Build], case: str) -> None:
    text, words = CASES[case]
    refused(empty(text), words)


@pytest.mark.parametrize("case", ["key twice", "tab"])
def test_the_one_shot_script_reads_as_strictly(begun: Build, tmp_path: Path, case: str) -> None:
    text, words = CASES[case]
    (tmp_path / "config.yaml").write_text(str(text), encoding="utf-8")
    before = tree(tmp_path)
    script = REPOSITORY / "scripts/quantize_finetuned_for_ollama.py"
    command = [sys.executable, script, "--lora-path", begun.folder / "adapter", "--output-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    for word in words:
        assert word.removeprefix("mine.yaml, ") in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "It is left as it is" in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == before


def test_folder_for_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    refused(Build(tmp_path, {}), ["'mine.yaml' is no regular file", "Expected YAML or JSON"])


def test_what_another_profile_lets_through_is_refused_by_the_snakefile(empty: Callable[[str | bytes], Build]) -> None:
    build = empty(CASES["key twice"][0])
    refused(build, CASES["key twice"][1][1:], "--workflow-profile", "none", "-n", "all")


def test_the_shipped_file_is_read_as_strictly(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    text = (REPOSITORY / "config/config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config/config.yaml").write_text(text + "merge: {dtype: bfloat16}\n", encoding="utf-8")
    before = tree(tmp_path)
    done = run_snakemake("-n", "all", folder=tmp_path)
    line = text.count("\n") + 1
    assert done.returncode == 1
    assert f"config/config.yaml, line {line}, column 1: the key 'merge' stands there a second time" in done.stdout
    assert tree(tmp_path) == before


def test_what_is_merely_unusual_is_read(tmp_path: Path) -> None:
    """A byte order mark, JSON, aliases, and a merge of keys: files as other programs write them."""
    content: dict[str, Any] = {"models": {"small": {"base": "nowhere"}}}
    for text in (
        b"\xef\xbb\xbf" + yaml.safe_dump(content).encode(),
        b'{\n\t"models": {"small": {"base": "nowhere"}}}',
        b"models: {small: &it {base: nowhere}, other: {<<: *it, quantizations: [Q8_0]}, third: *it}\n",
    ):
        (tmp_path / "mine.yaml").write_bytes(text)
        done = run_snakemake("--configfile", "mine.yaml", "-n", "all", folder=tmp_path)
        assert "models.small.base: the folder 'nowhere' does not exist" in done.stdout
