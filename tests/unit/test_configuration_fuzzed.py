"""Files that nobody would write are read or refused, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzed_configuration import HOSTILE_TEXTS, files, outcome
from hypothesis import HealthCheck, example, given, settings

from ollamake.configuration import Configuration
from ollamake.errors import OllamakeError


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=files())
@example(content=b"models: {m: {base: b, quantizations: [[Q8_0]]}}")
@example(content=b"models: {m: {base: b}}\nollama: {timeout: " + b"9" * 400 + b"}")
@example(content="\n".join(HOSTILE_TEXTS).encode("utf-8", "surrogatepass"))
def test_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "mine.yaml"
    file.write_bytes(content)
    result = outcome(file)
    assert isinstance(result, Configuration | OllamakeError)
    assert not Path("PWNED").exists()
