"""Ten minutes of configurations that nobody would write; tests/unit/test_configuration_fuzzed.py does a few seconds of it."""

from __future__ import annotations

import subprocess
import sys

import fuzz_configuration
import pytest

MINUTES = 10


@pytest.mark.campaign
@pytest.mark.faults
def test_fuzz(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, fuzz_configuration.__file__, "--minutes", str(MINUTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 * MINUTES, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "nothing else raised" in done.stdout
    with capfd.disabled():
        sys.stdout.write(done.stdout)
