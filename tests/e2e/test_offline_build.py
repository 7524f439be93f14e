"""llama.cpp is built where there is no network at all: from a file for a source, and without what its build would download."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake_runs import LLAMA_CPP, REPOSITORY

NOWHERE = "http://127.0.0.1:9"
ASKS = "import urllib.request; urllib.request.urlopen('https://pypi.org', timeout=5)"
COMPILES = (
    "import sys; from pathlib import Path; from ollamake.llama_cpp_source import compile_program;"
    "[compile_program(Path(sys.argv[1]), Path(sys.argv[2]), target, 1) for target in sys.argv[3:]]"
)


@pytest.fixture(scope="module")
def without_network() -> Callable[[list[str]], subprocess.CompletedProcess[str]]:
    """Run a command that reaches nothing: in a network of its own, or where that is not allowed behind a proxy that refuses."""
    alone = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    refused = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    environment = {**os.environ, **refused, "PIP_NO_INDEX": "1", "PYTHONPATH": str(REPOSITORY / "scripts")}

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        wrapped = [*["unshare", "-rn"] * alone, *command]
        return subprocess.run(wrapped, env=environment, capture_output=True, text=True, check=False)

    assert run([sys.executable, "-c", ASKS]).returncode != 0, "the network is there"
    return run


@pytest.mark.campaign
def test_it_is_configured_and_compiled(
    llama_cpp: Callable[[str], Path],
    without_network: Callable[[list[str]], subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    llama_cpp("llama-quantize")
    # What is compiled in seconds, and what downloads in llama.cpp's own configuration: the page of its server.
    targets = ["ggml-base", "llama-ui"]
    done = without_network([sys.executable, "-c", COMPILES, str(LLAMA_CPP / "source"), str(tmp_path / "b"), *targets])
    assert done.returncode == 0, done.stderr[-3000:]
    log = (tmp_path / "b/CMakeCache.txt").read_text(encoding="utf-8")
    assert "LLAMA_USE_PREBUILT_UI:BOOL=OFF" in log
    assert not list((tmp_path / "b").rglob("dist.tar.gz*"))
    assert "download" not in done.stderr.lower()
