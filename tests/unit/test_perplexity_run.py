"""Programs that stand in for llama-perplexity: what is said of their end, and that none of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ollamake.errors import OllamakeError
from ollamake.perplexity_faults import failed, nonfinite_fault, require_enough_chunks
from ollamake.perplexity_run import Ended, run_alone, run_joined, until_all_is_said
from ollamake.termination import interruptible, undivided

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text), encoding="utf-8")
    path.chmod(0o755)
    return path


def alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def process_id_in(file: Path) -> int:
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(file.read_text())


def test_what_a_program_says_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = script(
        tmp_path / "llama-perplexity",
        """
        printf '0.02 minutes\\n[1]6.2113,[2]6.'
        sleep 0.1
        printf '4114,\\n'
        echo '0.00.1.1 I working - ETA 0.00.003.939 E the reason' >&2
        exit 3
        """,
    )
    ended = run_alone([program], "perplexity", 2)
    assert (ended.returncode, ended.chunks, ended.nonfinite_chunk, ended.stopped) == (3, 2, None, False)
    assert ended.stdout.endswith("[1]6.2113,[2]6.4114,\n")
    assert ended.errors() == ["0.00.003.939 E the reason"]
    assert ended.last_words() == "0.00.003.939 E the reason"
    assert ended.how() == "exit code 3"
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "PPL 6.4114" in shown


def test_it_is_ended_at_the_first_nan(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"echo $$ > {tmp_path}/id; printf '[1]6.2,[2]-nan,[3]-nan,'; exec sleep 600")
    ended = run_alone([program], "perplexity", 100)
    assert (ended.nonfinite_chunk, ended.stopped) == (2, True)
    assert not alive(process_id_in(tmp_path / "id"))


def test_logging_is_not_changed_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_LOG_COLORS", "on")
    monkeypatch.setenv("LLAMA_ARG_N_GPU_LAYERS", "7")
    ended = run_alone([script(tmp_path / "p", "env | grep ^LLAMA_")], "perplexity", 1)
    assert ended.stdout == "LLAMA_ARG_N_GPU_LAYERS=7\n"


def complete(ended: Ended) -> bool:
    return ended.returncode == 0 and "done" in ended.stdout


def join(writer: Path, reader: Path) -> tuple[Ended, Ended]:
    return run_joined(lambda pipe: [writer, pipe], lambda pipe: [reader, pipe], complete, "comparing", 2)


def test_two_programs_joined(tmp_path: Path) -> None:
    writer = script(tmp_path / "writer", 'printf "[1]6.2,"; head -c 1000000 /dev/zero > "$1"; echo $OMP_WAIT_POLICY')
    reader = script(tmp_path / "reader", 'wc -c < "$1"; echo done')
    ended = join(writer, reader)
    assert [one.returncode for one in ended] == [0, 0]
    assert [one.stopped for one in ended] == [False, False]
    assert ended[1].stdout.split() == ["1000000", "done"]
    assert "passive" in ended[0].stdout


@pytest.mark.parametrize("opened", [True, False], ids=["while it is read", "before it is opened"])
@pytest.mark.parametrize("dying", ["writer", "reader"])
def test_if_one_is_killed_the_other_is_ended(tmp_path: Path, dying: str, opened: bool) -> None:
    """The one that died is the one that is said to have failed."""
    other = "writer" if dying == "reader" else "reader"
    kill = f"while [ ! -s {tmp_path}/{other}.id ]; do sleep 0.01; done; kill -9 $$"
    lines = {
        "writer": 'exec 3> "$1"; head -c 100000 /dev/zero >&3' if opened else "",
        "reader": 'exec 3< "$1"; head -c 100000 <&3 > /dev/null' if opened else "",
    }
    # What the surviving one does next would last for ever.
    last = {"writer": 'exec cat /dev/zero > "$1"', "reader": 'cat "$1" > /dev/null; exec sleep 600'}
    if opened:
        last = {"writer": "exec cat /dev/zero >&3", "reader": "cat <&3 > /dev/null; exec sleep 600"}
    programs = {
        name: script(
            tmp_path / name, f"echo $$ > {tmp_path}/{name}.id\n{lines[name]}\n{kill if name == dying else last[name]}"
        )
        for name in ("writer", "reader")
    }
    ended = dict(zip(("writer", "reader"), join(programs["writer"], programs["reader"]), strict=True))
    assert (ended[dying].returncode, ended[dying].stopped) == (-signal.SIGKILL, False)
    assert "SIGKILL; if nobody did that, the system was short of memory" in ended[dying].how()
    assert ended[other].stopped or ended[other].lost_its_reader
    assert not any(alive(process_id_in(tmp_path / f"{name}.id")) for name in programs)


def test_nan_in_one_of_two_ends_both(tmp_path: Path) -> None:
    writer = script(tmp_path / "writer", 'printf "[1]nan,"; exec cat /dev/zero > "$1"')
    reader = script(tmp_path / "reader", 'cat "$1" > /dev/null')
    assert [one.nonfinite_chunk for one in join(writer, reader)] == [1, None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_programs_too(tmp_path: Path, number: signal.Signals) -> None:
    writer = script(tmp_path / "writer", f'echo $$ > {tmp_path}/writer.id; exec cat /dev/zero > "$1"')
    # A script that starts a program of its own, as wrappers on PATH do.
    reader = script(tmp_path / "reader", f'cat "$1" > /dev/null & echo $! > {tmp_path}/reader.id; wait')
    code = f"""
        from ollamake.errors import run
        from ollamake.perplexity_run import run_joined
        run(lambda: run_joined(lambda pipe: [{str(writer)!r}, pipe], lambda pipe: [{str(reader)!r}, pipe], bool, "comparing", 2))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ids = [process_id_in(tmp_path / f"{name}.id") for name in ("writer", "reader")]
    child.send_signal(number)
    assert "interrupted" in child.communicate(timeout=60)[1]
    deadline = time.monotonic() + 30
    while any(map(alive, ids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_does_not_divide_what_must_not_be() -> None:
    """Between the start of a program and the note of it, for one."""
    before = signal.getsignal(signal.SIGTERM)
    reached = []

    def in_two_blocks() -> None:
        with undivided():
            with undivided():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("the end of the inner block")
            reached.append("the end of the outer block")
        reached.append("what comes after it")

    def in_none() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("what comes after a signal")

    for function in (in_two_blocks, in_none):
        with pytest.raises(KeyboardInterrupt), interruptible():
            function()
    assert reached == ["the end of the inner block", "the end of the outer block"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_last_lines_that_were_lost(tmp_path: Path) -> None:
    """A llama.cpp without the patch may lose its last lines; it is asked again, but not where it says what is wrong."""
    program = script(tmp_path / "p", f"echo x >> {tmp_path}/count; [ $(wc -l < {tmp_path}/count) -lt 2 ] || echo done")

    def run() -> Ended:
        return run_alone([program], "perplexity", 1)

    assert complete(until_all_is_said(run, complete))
    assert (tmp_path / "count").read_text() == "x\nx\n"
    assert not complete(until_all_is_said(lambda: run_alone(["true"], "perplexity", 1), complete))
    script(program, f"echo x >> {tmp_path}/count; echo '0.00.003.939 E the reason' >&2")
    (tmp_path / "count").unlink()
    assert not complete(until_all_is_said(run, complete))
    assert (tmp_path / "count").read_text() == "x\n"


def ended(stderr: str, returncode: int = 0) -> Ended:
    return Ended("llama-perplexity", returncode, False, "", stderr, 0, None)


def test_a_text_that_is_too_short() -> None:
    said = (
        "0.00.033.926 E perplexity: you need at least 2048 tokens to evaluate perplexity with a context of 1024\n"
        "0.00.033.939 E perplexity: the data file you provided tokenizes to only 1491 tokens\n"
    )
    message = str(failed(ended(said), Path("m.gguf"), Path("evaluation.txt"), ["Final estimate: PPL"]))
    assert "evaluation.txt is too short" in message
    assert "needs 2048 tokens" in message
    assert "it has 1491" in message
    assert "quality.text" in message


def test_a_program_that_fails_is_told_in_its_own_words() -> None:
    said = "0.00.1.1 I loading\n0.00.033.926 E llama_perplexity: unable to load model\n"
    message = str(failed(ended(said, 1), Path("m.gguf"), Path("t.txt"), []))
    assert message == (
        "llama-perplexity failed on m.gguf (exit code 1). It said:\n0.00.033.926 E llama_perplexity: unable to load model"
    )
    message = str(failed(ended("0.00.1.1 I done\n"), Path("m.gguf"), Path("t.txt"), ["RMS Δp", "Same top p"]))
    assert "ended without all of its figures of m.gguf (exit code 0; missing: RMS Δp, Same top p)" in message
    assert "issue 22142" in message
    assert "(it said nothing)" in str(failed(ended("", -11), Path("m.gguf"), Path("t.txt"), []))
    assert "ended by SIGSEGV" in str(failed(ended("", -11), Path("m.gguf"), Path("t.txt"), []))


def test_too_few_scored_tokens() -> None:
    require_enough_chunks(512, 1, Path("evaluation.txt"))
    with pytest.raises(OllamakeError, match=r"3 chunks of 64 tokens have 93 scored tokens.*takes 1 chunks more"):
        require_enough_chunks(64, 3, Path("evaluation.txt"))


def test_nan_without_a_weight_that_is_nan(tmp_path: Path) -> None:
    from stand_in.tiny_gguf import write_gguf

    gguf = write_gguf(tmp_path / "m.gguf")
    at_chunk = Ended("llama-perplexity", -15, True, "", "", 7, 7)
    message = str(nonfinite_fault(at_chunk, gguf, "F16"))
    assert "NaN or infinite from chunk 7 on" in message
    assert "neither NaN nor infinity" in message
    assert "overflow" in message
    assert "merge: {dtype: bfloat16}" in message
    assert "bfloat16" not in str(nonfinite_fault(at_chunk, gguf, "BF16"))
    assert nonfinite_fault(ended("0.00.033.926 E unable to load model\n", 1), gguf, "F16") is None
