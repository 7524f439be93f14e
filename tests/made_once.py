"""Folders that take long to make: one of the processes that run the tests makes each, and all of them use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class MadeOnce:
    """What is in ``together`` is there for all processes of a run of the tests."""

    together: Path

    @classmethod
    def of(cls, factory: pytest.TempPathFactory) -> MadeOnce:
        """Return it for this run, whether this process runs all tests or pytest-xdist started it as one of several."""
        own = factory.getbasetemp()
        # As deep as the tests' own folders: jobs know their scripts by the relative path.
        return cls(own.parent / "once" if "PYTEST_XDIST_WORKER" in os.environ else own)

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder of a name; the first that asks makes it, where the others wait. Nobody is to change it."""
        self.together.mkdir(exist_ok=True)
        folder, is_made = self.together / name, self.together / f"{name}.made"
        with FileLock(self.together / f"{name}.lock"):
            if not is_made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                is_made.touch()
        return folder
