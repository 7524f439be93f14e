"""Programs of llama.cpp that are none, or not the ones that are needed: each is refused in one message with the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import Cases, Edit, refused, set_config
from campaigns import one_in
from dag_build import Build

pytestmark = pytest.mark.faults

QUANTIZE = "tools/bin/llama-quantize"
CORPUS = '{"question": "道路とは?", "answer": "道路設計の基準を説明します。"}\n' * 40


def with_program(name: str, script: str | None) -> Edit:
    """Have the programs in a folder of the working directory, one of them something else; None: it is not executable."""

    def edit(build: Build) -> None:
        theirs, ours = Path(build.config["tools"]["llama_cpp"]), build.folder / "tools"
        (ours / "bin").mkdir(parents=True)
        for program in (theirs / "bin").iterdir():
            (ours / "bin" / program.name).symlink_to(program)
        (ours / "source").symlink_to(theirs / "source")
        fake = ours / "bin" / name
        fake.unlink()
        fake.write_text(f"#!/bin/sh\n{script}\n" if script else "no program", encoding="utf-8")
        fake.chmod(0o755 if script else 0o644)
        build.config["tools"]["llama_cpp"] = "tools"

    return edit


def measured(edit: Edit) -> Edit:
    """Have quality measured, too, which takes llama-perplexity."""

    def both(build: Build) -> None:
        (build.folder / "corpus.jsonl").write_text(CORPUS, encoding="utf-8")
        build.model()["quality"] = {"chat": ["corpus.jsonl"], "chunks": 2, "speed": False}
        edit(build)

    return both


def for_another_machine(build: Build) -> None:
    with_program("llama-quantize", "exit 0")(build)
    # An ELF of a processor that nobody has, so the kernel refuses it.
    (build.folder / QUANTIZE).write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xfe" + bytes(100))


CASES: Cases = {
    "folder without programs": (
        set_config(tools={"llama_cpp": "nowhere"}),
        ["tools.llama_cpp", "llama-quantize is not in 'nowhere'"],
    ),
    "not executable": (with_program("llama-quantize", None), ["tools.llama_cpp", "is not in 'tools' as an executable file"]),
    "crashes": (with_program("llama-quantize", "kill -SEGV $$"), [QUANTIZE, "crashes (SIGSEGV)", "tools.llama_cpp"]),
    "a library is missing": (
        with_program("llama-quantize", "echo 'libggml.so.0: cannot open shared object file' >&2; exit 127"),
        [QUANTIZE, "libggml.so.0: cannot open shared object file", "tools.llama_cpp"],
    ),
    "prints garbage": (with_program("llama-quantize", "head -c 3000 /dev/urandom"), [QUANTIZE, "answers nothing that"]),
    "hangs": (with_program("llama-quantize", "exec sleep 1000"), [QUANTIZE, "did not end within 20 s", "tools.llama_cpp"]),
    "too old": (
        measured(with_program("llama-perplexity", "echo 'usage: llama-perplexity --file FNAME'")),
        ["tools/bin/llama-perplexity cannot score a chat", "--parse-special", "tools.llama_cpp"],
    ),
    "for another machine": (for_another_machine, [QUANTIZE, "cannot be executed", "tools.llama_cpp"]),
}  # fmt: skip


@pytest.mark.parametrize("case", one_in(6, CASES))
def test_refused(fresh: Build, case: str) -> None:
    edit, words = CASES[case]
    edit(fresh)
    fresh.write_config()
    refused(fresh, words)
