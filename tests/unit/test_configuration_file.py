"""A configuration file is read as what it says, or refused with its line; all of this without Snakemake.

tests/dag/test_bad_configurations.py runs the same table through Snakemake.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_configurations import CASES
from fuzzed_configuration import REAL, outcome

from ollamake.configuration_file import read_configuration_file
from ollamake.errors import OllamakeError


@pytest.mark.parametrize("case", CASES)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = CASES[case]
    file = Path("mine.yaml")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refusal = outcome(file)
    assert isinstance(refusal, OllamakeError)
    for word in words:
        assert word in str(refusal)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("file", REAL, ids=lambda file: file.name)
def test_real_ones_are_read(file: Path) -> None:
    assert "models" in read_configuration_file(file)


def test_json_with_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text in (b'{\n\t"models": {"m": {"base": "b"}}}', b"\xef\xbb\xbfmodels: {m: {base: b}}"):
        file.write_bytes(text)
        assert read_configuration_file(file) == {"models": {"m": {"base": "b"}}}


def test_aliases_and_merges_are_written_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: {a: &it {base: b}, c: {<<: *it, serve: merged}, d: *it}")
    content = read_configuration_file(file)["models"]
    assert content == {"a": {"base": "b"}, "c": {"base": "b", "serve": "merged"}, "d": {"base": "b"}}


@pytest.mark.parametrize("number", [10**400, -(10**16), float("inf")], ids=["int", "negative", "infinity"])
def test_numbers_of_which_nothing_can_be_made(tmp_path: Path, number: float) -> None:
    """Found by tests/faults/fuzz_configuration.py: an int that no float holds."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"models: {{m: {{base: b}}}}\nhardware: {{ram_gib: {number if number != float('inf') else '.inf'}}}\n"
    )
    refusal = outcome(file)
    assert isinstance(refusal, OllamakeError)
    assert "hardware.ram_gib: expected" in str(refusal)
