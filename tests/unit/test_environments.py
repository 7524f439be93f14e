"""envs/*.yaml name what the rules' scripts import, in the versions of requirements.txt."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ollamake.imported_modules import modules_used_by

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = sorted((REPOSITORY / "envs").glob("*.yaml"))
NAMES_ON_CONDA = {"pytorch-cpu": "torch"}
NO_LIBRARIES = {"python", "pip", "cxx-compiler"}
OF_THE_CONVERTER = {"gguf", "numpy", "protobuf", "sentencepiece", "torch", "transformers"}
"""What llama.cpp's converter imports: its requirements/requirements-convert_hf_to_gguf.txt."""
OF_TRANSFORMERS = {"sentencepiece", "protobuf", "accelerate"}
"""What transformers imports where a tokenizer or a quantized checkpoint is of that kind."""
PROGRAMS_RUN = {
    "build_llama_cpp": {"cmake", "ninja"},
    "fetch_llama_cpp": {"scikit-build-core"},
    "convert_to_gguf": OF_THE_CONVERTER,
    "convert_adapter_to_gguf": OF_THE_CONVERTER,
    "measure_ghost": OF_THE_CONVERTER,
}
"""Script -> packages of the programs that it starts, which no import names."""
LOOKED_FOR = {"matplotlib_fontja"}
"""Modules whose files are used without an import."""
OF_LLAMA_CPP = "conversion"
"""A package in llama.cpp's source tree."""


def pinned() -> dict[str, str]:
    """Return package -> version of requirements.txt."""
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip().split("==") for line in lines if not line.startswith(("#", "-c "))]
    return {canonicalize_name(name): version for name, version in pins}


def contents(environment: Path) -> dict[str, str]:
    """Return package -> version as it is pinned in an environment: `=4.70` on conda, `==0.19.0` of pip."""
    listed = yaml.safe_load(environment.read_text(encoding="utf-8"))["dependencies"]
    found = {}
    for entry in [*(one for one in listed if isinstance(one, str)), *listed[-1]["pip"]]:
        name, _, version = entry.partition("=")
        name = canonicalize_name(NAMES_ON_CONDA.get(name.strip(), name.strip()))
        assert name not in found, f"{environment.name} has {name} twice"
        found[name] = version
    return found


def rules() -> dict[str, tuple[set[str], str | None, bool]]:
    """Return rule -> (its scripts, its environment's name, whether it has a shell command)."""
    found = {}
    for file in sorted((REPOSITORY / "rules").glob("*.smk")):
        blocks = re.split(r"^(?:rule|checkpoint) (\w+):\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        for name, block in zip(blocks[::2], blocks[1::2], strict=True):
            environment = re.search(r"^    conda:\n        \"\.\./envs/(\w+)\.yaml\"$", block, re.MULTILINE)
            scripts = set(re.findall(r"\bscript\(\"(\w+)\"\)", block))
            found[name] = (
                scripts,
                environment and environment[1],
                bool(re.search(r"^    shell:", block, re.MULTILINE)),
            )
    return found


@cache
def packages_of_modules() -> dict[str, set[str]]:
    """Return module -> the packages that it may come from."""
    return {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


@cache
def comes_with(package: str) -> frozenset[str]:
    """Return a package and all that it requires, directly or not."""
    found, waiting = set(), [package]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            required = map(Requirement, requires(name) or ())
            waiting += [canonicalize_name(one.name) for one in required if one.marker is None or one.marker.evaluate()]
    return frozenset(found)


def imported_by(script: str) -> set[str]:
    """Return the modules of others that a script or its library imports, wherever in a file."""
    file = REPOSITORY / "scripts" / f"{script}.py"
    return {module for source in (file, *modules_used_by(file)) for module in imported_in(source)}


@cache
def imported_in(source: Path) -> frozenset[str]:
    """Return the modules of others that a file imports, or of which it has the name to look for."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Constant) and node.value in LOOKED_FOR:
            found.add(node.value)
    return frozenset(found - sys.stdlib_module_names - {"ollamake", OF_LLAMA_CPP})


def missing_in(environment: Path, scripts: set[str]) -> dict[str, set[str]]:
    """Return package -> scripts that use it, of those that an environment lacks.

    What requirements.txt pins must be named; of the rest it is enough that it comes with something that is.
    """
    there = contents(environment)
    brought = {one for name in there.keys() - NO_LIBRARIES - {"cmake", "ninja"} for one in comes_with(name)}
    missing = defaultdict(set)
    for script in scripts:
        used = {frozenset(packages_of_modules()[module]) for module in imported_by(script)}
        for packages in used | {frozenset({name}) for name in PROGRAMS_RUN.get(script, ())}:
            if not packages & (there.keys() if packages & pinned().keys() else brought):
                missing["/".join(sorted(packages))].add(script)
    return dict(missing)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda file: file.stem)
def test_versions_are_those_of_requirements(environment: Path) -> None:
    pins = pinned()
    for name, version in contents(environment).items():
        if name in NO_LIBRARIES:
            continue
        assert name in pins, f"{environment.name} has {name}, which requirements.txt does not pin"
        exact = version.removeprefix("=")
        assert f"{pins[name]}.".startswith(f"{exact}."), f"{environment.name}: {name} {exact}, pinned is {pins[name]}"
        assert version.startswith("=") or exact.count(".") == 1, f"{environment.name}: {name} is pinned to {version!r}"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda file: file.stem)
def test_they_have_what_the_scripts_of_their_rules_import(environment: Path) -> None:
    scripts = {script for scripts, name, _ in rules().values() if name == environment.stem for script in scripts}
    assert scripts
    assert missing_in(environment, scripts) == {}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda file: file.stem)
def test_nothing_in_them_is_unused(environment: Path) -> None:
    scripts = {script for scripts, name, _ in rules().values() if name == environment.stem for script in scripts}
    modules = {module for script in scripts for module in imported_by(script)}
    used = {package for module in modules for package in packages_of_modules()[module]}
    used |= {package for script in scripts for package in PROGRAMS_RUN.get(script, ())}
    assert contents(environment).keys() - NO_LIBRARIES - used - OF_TRANSFORMERS == set()


def test_each_rule_that_runs_something_has_an_environment() -> None:
    found = rules()
    assert len(found) > 40
    running = {name: environment for name, (_, environment, shell) in found.items() if shell}
    assert {name for name, environment in running.items() if environment is None} == set()
    assert set(running.values()) == {file.stem for file in ENVIRONMENTS}
    without_script = {name for name, (scripts, _, shell) in found.items() if shell and not scripts}
    assert without_script == {"release_logits", "release_merged"}, "these only echo"


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    """Without a package that a library module imports inside a function."""
    whole = REPOSITORY / "envs/ollama.yaml"
    without = tmp_path / "ollama.yaml"
    text = whole.read_text(encoding="utf-8")
    without.write_text(text.replace("      - ollama==0.6.3\n", ""), encoding="utf-8")
    assert missing_in(whole, {"register"}) == {}
    assert missing_in(without, {"register"}) == {"ollama": {"register"}}


def test_pins_for_buckets_are_the_tested_ones() -> None:
    """What users install is what the tests install; README and profile name the file."""
    pins = (REPOSITORY / "requirements-s3.txt").read_text(encoding="utf-8")
    assert "snakemake-storage-plugin-s3==" in pins
    assert "-r ../requirements-s3.txt\n" in (REPOSITORY / "tests/requirements-plugins.txt").read_text(encoding="utf-8")
    for name in ("README.md", "profiles/s3/profile.yaml"):
        assert "pip install -r requirements-s3.txt" in (REPOSITORY / name).read_text(encoding="utf-8")
    (client,) = re.findall(r"^boto3==([\d.]+\d)", pins, re.MULTILINE)
    assert f"\nboto3=={client} " in (REPOSITORY / "requirements-dev.txt").read_text(encoding="utf-8")
