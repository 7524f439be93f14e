"""What a job reads is what its records say, or the job publishes nothing."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from ollamake import proven_inputs
from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.proven_inputs import Recorded, proven, require_proven


def recorded(folder: Path, damaged: bool = False) -> Recorded:
    file = folder / "weights"
    file.write_bytes(os.urandom(100_000))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if damaged:
        content = bytearray(file.read_bytes())
        content[77_777] ^= 8
        file.write_bytes(content)
    return Recorded(file, digest)


def test_files_that_are_as_recorded(tmp_path: Path) -> None:
    with proven([recorded(tmp_path)]):
        pass
    require_proven([recorded(tmp_path)])


def test_a_flipped_bit_is_told_with_the_command_that_mends_it(tmp_path: Path) -> None:
    file = recorded(tmp_path, damaged=True)
    expected = rf"{file.path} is damaged: its sha256 is .*rm -f {file.path} && snakemake --cores 1 {file.path} all"
    with pytest.raises(DamagedFile, match=expected), proven([file]):
        pass
    with pytest.raises(DamagedFile, match=expected):
        require_proven([file])


def test_what_is_removed_may_be_the_record(tmp_path: Path) -> None:
    file = recorded(tmp_path, damaged=True)
    with pytest.raises(DamagedFile, match=r"rm -f results/m/r\.json && snakemake --cores 1 results/m/r\.json all"):
        require_proven([Recorded(file.path, file.sha256, (Path("results/m/r.json"),))])


def test_a_program_that_fails_on_a_damaged_file_is_not_the_one_to_blame(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile), proven([recorded(tmp_path, damaged=True)]):
        raise OllamakeError("llama-quantize failed")
    with pytest.raises(OllamakeError, match="llama-quantize failed"), proven([recorded(tmp_path)]):
        raise OllamakeError("llama-quantize failed")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="it cannot be read"):
        require_proven([Recorded(tmp_path / "none", "0" * 64)])


def test_an_interrupt_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, read = threading.Event(), []

    def endless(_: Path, advance: object) -> str:
        assert callable(advance)
        while True:
            begun.set()
            read.append(1)
            advance(1)

    monkeypatch.setattr(proven_inputs, "sha256_of", endless)

    def interrupted() -> None:
        with proven([recorded(tmp_path)]):
            assert begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read
