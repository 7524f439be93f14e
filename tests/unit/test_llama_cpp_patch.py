"""What ollamake changes in llama.cpp's source, and that nothing is changed where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollamake.errors import OllamakeError
from ollamake.llama_cpp_patch import PATCH, Replacement, apply_patch
from ollamake.perplexity_command import comparison_command, reference_command, require_parse_special

OLD = (Replacement("a/one.cpp", "old\n", "new\n"), Replacement("two.cpp", "x", "y"), Replacement("two.cpp", "z", "zz"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.cpp").write_bytes(b"before\r\nold\nafter \xc3\xa9\n")
    (tmp_path / "two.cpp").write_bytes(b"xz")
    return tmp_path


def test_it_changes_only_that(tree: Path) -> None:
    changes = apply_patch(tree, OLD)
    assert (tree / "a/one.cpp").read_bytes() == b"before\r\nnew\nafter \xc3\xa9\n"
    assert (tree / "two.cpp").read_bytes() == b"yzz"
    assert changes[0] == {"file": "a/one.cpp", "old": "old\n", "new": "new\n"}
    assert len(changes) == 3


@pytest.mark.parametrize(("content", "times"), [(b"xx z", 2), (b"z", 0)])
def test_a_text_that_is_not_there_once_stops_all_of_it(tree: Path, content: bytes, times: int) -> None:
    (tree / "two.cpp").write_bytes(content)
    with pytest.raises(
        OllamakeError, match=rf"(?s)two\.cpp: .* is there {times} times, expected once.*do not belong together"
    ):
        apply_patch(tree, OLD)
    assert b"old\n" in (tree / "a/one.cpp").read_bytes()


def test_a_file_that_is_not_there(tree: Path) -> None:
    (tree / "two.cpp").unlink()
    with pytest.raises(OllamakeError, match=r"two\.cpp: No such file"):
        apply_patch(tree, OLD)


def test_the_patch_does_not_apply_twice(tmp_path: Path) -> None:
    for one in PATCH:
        path = tmp_path / one.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + one.old)
    apply_patch(tmp_path)
    with pytest.raises(OllamakeError, match="expected once"):
        apply_patch(tmp_path)


def program(path: Path, usage: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{usage}'\n")
    path.chmod(0o755)
    return path


def test_a_program_without_the_option_is_refused(tmp_path: Path) -> None:
    require_parse_special(program(tmp_path / "patched", "--parse-special   parse special tokens"))
    with pytest.raises(
        OllamakeError, match=r"quality\.chat.*no option --parse-special.*PATH.*tools\.llama_cpp to null"
    ):
        require_parse_special(program(tmp_path / "plain", "--perplexity"))


@pytest.mark.parametrize("parse_special", [True, False])
def test_commands(tmp_path: Path, parse_special: bool) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    record = {"context": 512, "chunks": 7, "parse_special": parse_special}
    program, text, logits = Path("llama-perplexity"), Path("t.txt"), Path("r.kld")
    command = reference_command(program, gguf, text, record, 3, logits)
    assert command[:4] == ["llama-perplexity", "-m", str(gguf), "--check-tensors"]
    pairs = dict(zip(command[4::2], command[5::2], strict=False))
    assert (pairs["-c"], pairs["-b"], pairs["-t"], pairs["-f"], pairs["--chunks"]) == ("512", "2048", "3", "t.txt", "7")
    assert ("--parse-special" in command) == parse_special
    assert command[-2:] == ["--kl-divergence-base", "r.kld"]
    assert "--kl-divergence-base" not in reference_command(program, gguf, text, record, 3, None)
    command = comparison_command(program, gguf, 512, 3, logits)
    assert command[-3:] == ["--kl-divergence", "--kl-divergence-base", "r.kld"]
    assert "-ngl" not in command
