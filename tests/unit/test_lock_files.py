"""The lock files have what the requirements ask for, each by sha256, and what is installed here is what they say."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
from lock_requirements import CONSTRAINTS, LOCKS, REPOSITORY, constraints
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_SHA256 = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return package -> what a lock file asks for, and the sha256 of the files that it may be."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    found = {}
    for line in lines:
        requirement = Requirement(line.partition("--hash")[0].strip())
        found[canonicalize_name(requirement.name)] = requirement, _SHA256.findall(line)
    assert len(found) == len(lines), "a package stands there twice"
    return found


def asked(file: Path) -> list[Requirement]:
    """Return what a requirements file asks for, with the files that it includes."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found += asked(file.parent / line[3:])
        elif line and not line.startswith("-c "):
            found.append(Requirement(line))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_every_requirement_at_its_version_by_sha256(lock: str) -> None:
    packages = locked(lock)
    for requirement in [one for file in LOCKS[lock] for one in asked(REPOSITORY / file)]:
        pinned, _ = packages[canonicalize_name(requirement.name)]
        assert str(requirement.specifier) == str(pinned.specifier), f"{requirement}: {lock} has {pinned}"
    for name, (requirement, digests) in packages.items():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), name
        assert digests, name
        assert requirement.url is None, name


def test_both_locks_have_the_same_versions() -> None:
    second, first = (locked(lock) for lock in LOCKS)
    assert {name: str(one.specifier) for name, (one, _) in first.items()} == {
        name: str(second[name][0].specifier) for name in first
    }


def test_pip_takes_the_versions_of_the_lock_though_it_checks_no_sha256() -> None:
    text = (REPOSITORY / CONSTRAINTS).read_text(encoding="utf-8")
    assert text == constraints()
    found = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    packages = locked("requirements-dev.lock")
    assert {canonicalize_name(one.name): str(one.specifier) for one in found} == {
        name: str(one.specifier) for name, (one, _) in packages.items()
    }
    assert (
        "-c constraints.txt"
        in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").partition("snakemake==")[0]
    )


def test_no_lock_names_a_host() -> None:
    for lock in LOCKS:
        text = (REPOSITORY / lock).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text


def test_what_is_installed_is_what_the_lock_says() -> None:
    packages = locked("requirements-dev.lock")
    wrong = [
        f"{name} {here.version}, locked {packages[name][0].specifier}"
        for here in distributions()
        if (name := canonicalize_name(here.metadata["Name"])) in packages
        and not packages[name][0].specifier.contains(here.version, prereleases=True)
    ]
    assert not wrong, (
        f"{'; '.join(wrong)}. Install by the lock (pip install --require-hashes -r requirements-dev.lock), or write it anew"
        " (python tests/lock_requirements.py --upgrade)."
    )


def test_everything_that_the_chain_needs_is_installed() -> None:
    here = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    needed = {
        name for name, (one, _) in locked("requirements.lock").items() if one.marker is None or one.marker.evaluate()
    }
    assert needed <= here
