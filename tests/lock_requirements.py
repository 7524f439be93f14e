"""Write the lock files anew: every package that requirements name or need, at one version, by sha256.

    pip install uv==0.13.9 && python tests/lock_requirements.py

A version that a lock has stays as long as the requirements allow it; `--upgrade` takes the newest. Needs a package index. The
locks are those of Linux on x86-64 with Python 3.11; each package stands there with all of its files, so that other Linux
machines and later Pythons find theirs, too, where a package needs nothing more there. constraints.txt has the versions alone:
`pip install -r requirements.txt` takes them, too, and checks no sha256.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements-dev.lock": (
        "requirements-dev.txt",
        "requirements-s3.txt",
        "requirements-slurm.txt",
        "tests/requirements-plugins.txt",
    ),
    "requirements.lock": ("requirements.txt",),
}
"""Lock -> what it is of. The first has what the second has, at the same versions."""


CONSTRAINTS = "constraints.txt"


def constraints() -> str:
    """Return the versions of all packages of the larger lock, as constraints for pip."""
    lines = (REPOSITORY / next(iter(LOCKS))).read_text(encoding="utf-8").splitlines()
    pinned = [line.removesuffix("\\").strip() for line in lines if line[:1].isalnum()]
    return "\n".join(["# The versions of requirements-dev.lock, by tests/lock_requirements.py.", *pinned, ""])


def main(options: list[str]) -> None:
    # What is resolved follows from the requirements, not from what was resolved before.
    (REPOSITORY / CONSTRAINTS).write_text("", encoding="utf-8")
    for lock, requirements in LOCKS.items():
        command = ["uv", "pip", "compile", "--quiet", "--python-platform", "linux", "--python-version", "3.11"]
        command += ["--generate-hashes", "--custom-compile-command", "python tests/lock_requirements.py", *options]
        if lock == "requirements.lock":
            command += ["--constraint", "requirements-dev.lock"]
        subprocess.run([*command, *requirements, "--output-file", lock], cwd=REPOSITORY, check=True)
    (REPOSITORY / CONSTRAINTS).write_text(constraints(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
