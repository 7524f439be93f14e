"""Plugins of Snakemake that some tests need, in a folder of their own: each is imported at every start of Snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from background_builds import build_once
from snakemake_runs import REPOSITORY

PINS = Path(__file__).with_name("requirements-plugins.txt")
FOLDER = REPOSITORY / "resources/plugins"


def plugins() -> Path:
    """Return the folder of the plugins, installed by pip where they are not yet, or are not the pinned ones."""
    pinned = FOLDER / "pins.txt"
    pins = "".join(file.read_text(encoding="utf-8") for file in (PINS, *sorted(REPOSITORY.glob("requirements-s*.txt"))))
    build_once(lambda: pinned.exists() and pinned.read_text(encoding="utf-8") == pins, lambda: _install(pins), FOLDER)
    return FOLDER


def with_plugins() -> dict[str, str]:
    """Return the environment variable by which Snakemake, and jobs that it submits, find them."""
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(plugins()), *([path] if path else [])])}


def _install(pins: str) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    # What they need beside them is there already, or stands among the pins.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), "-r", str(PINS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (FOLDER / "pins.txt").write_text(pins, encoding="utf-8")
