"""A GGUF that is made again must be the one that was recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ollamake.errors import OllamakeError
from ollamake.unquantized_record import require_gguf, require_the_same, unquantized_record

SCRIPTS = Path(__file__).parents[2] / "scripts"


def written(file: Path, sha256: str, **more: str) -> Path:
    file.write_text(json.dumps({"sha256": sha256} | more), encoding="utf-8")
    return file


def test_the_record_says_what_was_converted_and_from_what() -> None:
    record = unquantized_record({"sha256": "a", "tokenizer": None}, '{"code": 1}')
    assert record == {"sha256": "a", "tokenizer": None, "spec": '{"code": 1}'}


def test_the_same_bytes_are_required(tmp_path: Path) -> None:
    record = written(tmp_path / "record.json", "a", spec="{}")
    require_the_same(written(tmp_path / "same.json", "a"), record)
    with pytest.raises(OllamakeError, match=r"sha256 a; found one with b\. .* Remove .*record\.json"):
        require_the_same(written(tmp_path / "other.json", "b"), record)


def test_the_script_ends_in_one_message(tmp_path: Path) -> None:
    record, other = written(tmp_path / "record.json", "a", spec="{}"), written(tmp_path / "other.json", "b")
    command = [sys.executable, SCRIPTS / "release_unquantized.py", "--conversion", other, "--record", record]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_gguf_that_went_is_said_to_come_again(tmp_path: Path) -> None:
    gguf = tmp_path / "m.unquantized.gguf"
    with pytest.raises(OllamakeError, match=r"keep\.unquantized: false .*snakemake --cores 1 all"):
        require_gguf(gguf)
    gguf.touch()
    require_gguf(gguf)
