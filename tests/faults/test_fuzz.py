"""Ten minutes of strangers' files for each reader; tests/unit/test_hostile_headers.py does a few seconds of it."""

from __future__ import annotations

import os
import subprocess
import sys

import fuzzed_readers
import pytest
from snakemake_runs import REPOSITORY

SECONDS = 600


@pytest.mark.campaign
@pytest.mark.parametrize("reader", fuzzed_readers.READERS)
def test_fuzz(reader: str, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, fuzzed_readers.__file__, "--reader", reader, "--seconds", str(SECONDS)]
    paths = os.pathsep.join(str(REPOSITORY / name) for name in ("scripts", "tests/faults"))
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"{reader}: " in done.stdout
    with capfd.disabled():
        sys.stdout.write(done.stdout)
