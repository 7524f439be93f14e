"""Our figures against those that llama-perplexity prints by itself, on random models, with faults in them and without."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from random_gguf import SPECIAL, Shape, overflow_at, set_weight
from snakemake_runs import LLAMA_CPP, REPOSITORY

import evaluate_quality
import evaluate_reference
import measure_speed
from ollamake import nonfinite_weights, perplexity_reference
from ollamake.damage import DamagedFile
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_header import BLOCK_SIZES, read_gguf_header
from ollamake.gguf_quantization import quantize
from ollamake.llama_cpp_patch import PATCH
from ollamake.logits_file import logits_bytes, read_header
from ollamake.perplexity_output import parse_statistics

CONTEXT, CHUNKS = 128, 6
SMALL = Shape(vocabulary=301, width=256, layers=2, feed_forward=512)
LARGE = Shape(vocabulary=32_000, width=768, layers=8, feed_forward=2048)
"""0.1 billion parameters."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HIGH, LOW = ("max", "p99_9", "p99", "p95", "p90"), ("p10", "p5", "p1", "p0_1", "min")
PRINTED = (
    *("ppl", "ppl_reference", "ppl_correlation", "ln_ppl_ratio", "ppl_ratio", "ppl_difference"),
    *(f"kld.{key}" for key in ("mean", *HIGH, "median", *LOW)),
    *(f"delta_p.{key}" for key in ("mean", *HIGH, "p75", "median", "p25", *LOW, "rms")),
    "same_top",
)
"""Our names of what llama-perplexity prints, line by line."""
RARE = "Z"
"""Stands in the third chunk of the text and nowhere else."""


@dataclass(frozen=True)
class Job:
    """A folder with what the two scripts take and write."""

    program: Path
    folder: Path
    text: str
    chunks: int = CHUNKS
    parse_special: bool = False

    def write(self, name: str, record: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(record), encoding="utf-8")
        return path

    def common(self) -> list[str]:
        text = self.folder / "evaluation.txt"
        text.write_text(self.text, encoding="utf-8")
        record = {
            "context": CONTEXT,
            "chunks": self.chunks,
            "parse_special": self.parse_special,
            "sha256": sha256_of(text),
        }
        return [
            *("--program", str(self.program), "--text", str(text), "--threads", "2"),
            *("--text-record", str(self.write("evaluation", record))),
        ]

    def reference(self, gguf: Path) -> dict[str, Any]:
        gguf_record = self.write(gguf.name, {"type": "F16", "sha256": sha256_of(gguf), "size": gguf.stat().st_size})
        outputs = ["--logits", str(self.logits), "--record", str(self.folder / "reference.json")]
        evaluate_reference.main(["--gguf", str(gguf), "--source-record", str(gguf_record), *outputs, *self.common()])
        return json.loads((self.folder / "reference.json").read_text())  # type: ignore[no-any-return]

    def comparison(self, reference: Path, gguf: Path, measured: str) -> list[str]:
        gguf_record = self.write(gguf.name, {"type": measured, "sha256": sha256_of(gguf), "size": gguf.stat().st_size})
        return [
            *(
                "--measured",
                measured,
                "--gguf",
                str(gguf),
                "--gguf-record",
                str(gguf_record),
                "--logits",
                str(self.logits),
            ),
            *("--reference-gguf", str(reference), "--reference-record", str(self.folder / "reference.json")),
            *("--output", str(self.folder / f"{measured}.json"), *self.common()),
        ]

    def quality(self, reference: Path, gguf: Path, measured: str = "Q8_0") -> dict[str, Any]:
        evaluate_quality.main(self.comparison(reference, gguf, measured))
        return json.loads((self.folder / f"{measured}.json").read_text())  # type: ignore[no-any-return]

    def pipe(self) -> None:
        """Make the record of the reference one of a reference that did not fit on the disk."""
        record = json.loads((self.folder / "reference.json").read_text())
        self.write("reference", record | {"piped": True})
        self.logits.unlink()

    @property
    def logits(self) -> Path:
        return self.folder / "reference.kld"


def random_text(characters: int) -> str:
    letters = list(np.random.default_rng(7).choice(list(LETTERS), characters))
    letters[2 * CONTEXT + 80] = RARE
    return "".join(letters)


@pytest.fixture(autouse=True)
def idle_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may run on the same cores."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="module")
def program(llama_cpp: Callable[[str], Path]) -> Path:
    return llama_cpp("llama-perplexity")


@pytest.fixture(scope="module")
def models(llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    models = {"F16": SMALL.write(folder / "F16.gguf")}
    for kind in ("Q8_0", "Q4_0", "Q1_0", "Q2_0"):
        models[kind] = folder / f"{kind}.gguf"
        quantize(llama_cpp("llama-quantize"), models["F16"], models[kind], kind, 2)
    return models


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    yield LARGE.write(folder / "F16.gguf")
    shutil.rmtree(folder)


@pytest.fixture
def job(program: Path, tmp_path: Path) -> Job:
    return Job(program, tmp_path, random_text(CONTEXT * CHUNKS + 5))


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run llama-perplexity without any of our code, with the batches that we give it."""
    sizes = ("-c", str(CONTEXT), "-b", "2048", "-ub", "512", "-t", "2")
    return subprocess.run([program, *sizes, *arguments], capture_output=True, text=True, check=True)


def numbers(figures: Any, place: str) -> list[float]:
    """Return a figure, and its error if it has one, of those that evaluate_quality found."""
    for key in place.split("."):
        figures = figures[key]
    return [figures["value"], figures["error"]] if isinstance(figures, dict) else [figures]


def printed_numbers(line: str) -> list[float]:
    """Return figure and error of a line; where two models are equal to the last bits, an error of 0 is printed as nan."""
    figure, *error = re.findall(r"-?(?:\d+\.\d+|nan)", line.rpartition(":")[2])
    return [float(figure), *(0.0 if text.endswith("nan") else float(text) for text in error)]


def expect_the_programs_own_figures(
    job: Job, reference: Path, gguf: Path, kind: str, vocabulary: int
) -> dict[str, Any]:
    """Compare with two runs of llama-perplexity by hand: every figure that it prints, and the bytes of its logits file.

    Return what evaluate_quality found.
    """
    record = job.reference(reference)
    text, logits = job.folder / "evaluation.txt", job.folder / "own.kld"
    own = run(job.program, "-m", reference, "-f", text, "--chunks", str(job.chunks), "--kl-divergence-base", logits)
    assert f"Final estimate: PPL = {record['ppl']['value']:.4f} +/- {record['ppl']['error']:.5f}\n" in own.stderr
    assert job.logits.read_bytes() == logits.read_bytes()
    assert record["logits_bytes"] == logits.stat().st_size == logits_bytes(CONTEXT, vocabulary, job.chunks)
    found = (record["chunks"], record["tokens"], record["vocabulary"], record["piped"])
    assert found == (job.chunks, job.chunks * 63, vocabulary, False)

    quality = job.quality(reference, gguf, kind)
    own = run(job.program, "-m", gguf, "--kl-divergence", "--kl-divergence-base", logits)
    lines = [line for line in own.stdout.partition("====== Perplexity")[2].splitlines() if ":" in line]
    assert quality["printed"] == lines
    assert [numbers(quality, place) for place in PRINTED] == [printed_numbers(line) for line in lines]
    return quality


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q1_0", "Q2_0"])
def test_the_figures_are_the_programs_own(job: Job, models: dict[str, Path], kind: str) -> None:
    quality = expect_the_programs_own_figures(job, models["F16"], models[kind], kind, 301)
    assert quality["kld"]["mean"]["value"] > 0


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_the_figures_of_a_tenth_of_a_billion_parameters_are_the_programs_own(
    llama_cpp: Callable[[str], Path], program: Path, large: Path, tmp_path: Path, kind: str
) -> None:
    gguf = tmp_path / f"{kind}.gguf"
    quantize(llama_cpp("llama-quantize"), large, gguf, kind, 2)
    job = Job(program, tmp_path, random_text(CONTEXT * 2 + 5 + 80), chunks=2)
    quality = expect_the_programs_own_figures(job, large, gguf, kind, 32_000)
    assert quality["kld"]["mean"]["value"] > 0


def test_the_coarser_the_farther(job: Job, models: dict[str, Path]) -> None:
    job.reference(models["F16"])
    fine, coarse = (job.quality(models["F16"], models[kind], kind) for kind in ("Q8_0", "Q4_0"))
    assert 0 < fine["kld"]["mean"]["value"] < coarse["kld"]["mean"]["value"] / 10
    assert fine["same_top"]["value"] > coarse["same_top"]["value"]


def test_a_model_against_itself(job: Job, models: dict[str, Path]) -> None:
    job.reference(models["F16"])
    quality = job.quality(models["F16"], models["F16"], "F16")
    assert quality["kld"]["mean"] == {"value": 0.0, "error": pytest.approx(0, abs=1e-6)}
    assert quality["same_top"] == {"value": 100.0, "error": 0.0}
    assert abs(quality["kld"]["max"]) < 1e-4, "rounding to 16 bits"


def test_a_tenth_of_a_billion_parameters_against_themselves(program: Path, large: Path, tmp_path: Path) -> None:
    job = Job(program, tmp_path, random_text(CONTEXT * 2 + 5 + 80), chunks=2)
    quality = expect_the_programs_own_figures(job, large, large, "F16", 32_000)
    (mean,) = (line for line in quality["printed"] if re.match(r"Mean +KLD:", line))
    assert re.fullmatch(r"Mean +KLD: +-?0\.000000 ± +0\.000000", mean)
    assert quality["same_top"] == {"value": 100.0, "error": 0.0}
    assert max(abs(quality["kld"]["max"]), abs(quality["kld"]["min"])) < 1e-4


def without_seal(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seal"}


def test_through_a_pipe_as_through_a_file(
    job: Job, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored = job.reference(models["F16"])
    by_file = job.quality(models["F16"], models["Q4_0"], "Q4_0")
    monkeypatch.setattr(perplexity_reference, "free_bytes", lambda _: 0)
    piped = job.reference(models["F16"])
    assert without_seal(piped) == without_seal(stored) | {"piped": True}
    assert "0.00 GB free" in caplog.text
    assert "did not fit on the disk" in job.logits.read_text()
    assert job.quality(models["F16"], models["Q4_0"], "Q4_0") == by_file


def killed(job: Job, arguments: list[str], victim: str) -> str:
    """Run evaluate_quality, kill one of its two programs at once, and return what is said; nothing is left behind."""
    command = [sys.executable, str(REPOSITORY / "scripts/evaluate_quality.py"), *arguments]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    programs: dict[str, int] = {}
    deadline = time.monotonic() + 60
    while len(programs) < 2:
        assert time.monotonic() < deadline
        assert child.poll() is None
        for number in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            if words[0] == str(job.program).encode():
                programs["reader" if b"--kl-divergence" in words else "writer"] = int(number)
        time.sleep(0.01)
    kill(programs[victim], signal.SIGKILL)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 1
    assert not any(Path(f"/proc/{number}").exists() for number in programs.values())
    return said


@pytest.mark.parametrize(("victim", "named"), [("writer", "F16.gguf"), ("reader", "other.gguf")])
def test_one_of_two_that_is_killed_ends_both_and_is_named(
    program: Path, large: Path, tmp_path: Path, victim: str, named: str
) -> None:
    job = Job(program, tmp_path, random_text(CONTEXT * 40), chunks=40)
    other = large.with_name("other.gguf")
    if not other.exists():
        other.hardlink_to(large)
    record = {"context": CONTEXT, "chunks": 40, "vocabulary": 32_000, "type": "F16",
              "gguf_sha256": sha256_of(large), "text_sha256": hashlib.sha256(job.text.encode()).hexdigest(),
              "piped": True}  # fmt: skip
    job.write("reference", record)
    said = killed(job, job.comparison(large, other, "Q8_0"), victim)
    assert re.search(rf"error: llama-perplexity failed on \S*/{named} \(ended by SIGKILL", said)
    assert not (tmp_path / "Q8_0.json").exists()


def test_nan_in_the_reference(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    """Its log-probabilities would pass: the divergence from them is 0."""
    faulty = shutil.copy(models["F16"], tmp_path / "faulty.gguf")
    set_weight(faulty, "token_embd.weight", SMALL.tokens().index(RARE), np.nan)
    with pytest.raises(
        OllamakeError, match=r"(?s)faulty\.gguf: .*--check-tensors.*token_embd\.weight \(1 NaN and 0 infinite"
    ):
        job.reference(faulty)
    assert not job.logits.exists()
    logits = tmp_path / "nan.kld"
    own = run(job.program, "-m", faulty, "-f", tmp_path / "evaluation.txt", "--kl-divergence-base", logits)
    assert re.search(r"\[2\]\d+\.\d+,\[3\]-?nan,", own.stdout)
    own = run(job.program, "-m", models["F16"], "--kl-divergence", "--kl-divergence-base", logits)
    assert parse_statistics(own.stdout)[0]["kld"]["mean"]["value"] == 0.0


def test_an_overflow_in_the_computation(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    """Activations of one token that float16 cannot hold, in the third chunk: no weight is to blame."""
    faulty = shutil.copy(models["F16"], tmp_path / "faulty.gguf")
    overflow_at(faulty, SMALL.tokens().index(RARE))
    said = r"faulty\.gguf: .*infinite from chunk 3 on.*neither NaN nor infinity.*overflow.*merge: \{dtype: bfloat16\}"
    with pytest.raises(OllamakeError, match=said):
        job.reference(faulty)
    assert not job.logits.exists()
    job.reference(models["F16"])
    with pytest.raises(OllamakeError, match=said):
        job.quality(models["F16"], faulty, "F16")
    job.pipe()
    with pytest.raises(OllamakeError, match=said):
        job.quality(models["F16"], faulty, "F16")
    record = json.loads((tmp_path / "reference.json").read_text())
    with pytest.raises(DamagedFile, match=r"faulty\.gguf is damaged: its sha256 is"):
        job.quality(faulty, models["Q8_0"])
    job.write("reference", record | {"gguf_sha256": sha256_of(Path(faulty))})
    with pytest.raises(OllamakeError, match=said):
        job.quality(faulty, models["Q8_0"])


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_a_quantization(job: Job, models: dict[str, Path], tmp_path: Path, value: float, piped: bool) -> None:
    """It need not come out as NaN: the activations are quantized for the next product, and NaN with them."""
    faulty = shutil.copy(models["Q8_0"], tmp_path / "faulty.gguf")
    set_weight(faulty, "blk.1.ffn_up.weight", 3, value)
    job.reference(models["F16"])
    if piped:
        job.pipe()
    with pytest.raises(OllamakeError, match=r"faulty\.gguf: .*--check-tensors.*blk\.1\.ffn_up\.weight \("):
        job.quality(models["F16"], faulty)


@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0"])
def test_nan_in_a_type_that_the_gguf_package_does_not_know(
    job: Job, models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    faulty = Path(shutil.copy(models[kind], tmp_path / "faulty.gguf"))
    (tensor,) = (one for one in read_gguf_header(faulty, ()).tensors if one.name == "blk.1.ffn_up.weight")
    with faulty.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(np.array([np.nan], np.float16).tobytes())
    job.reference(models["F16"])
    block = BLOCK_SIZES[tensor.kind][0]
    said = rf"faulty\.gguf: .*--check-tensors.*blk\.1\.ffn_up\.weight \({block} NaN and 0 infinite of 131072\)"
    with pytest.raises(OllamakeError, match=said):
        job.quality(models["F16"], faulty, kind)


@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0"])
def test_weights_are_dequantized_as_by_llama_cpp(
    llama_cpp: Callable[[str], Path], models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    again = tmp_path / "F32.gguf"
    command = [llama_cpp("llama-quantize"), "--allow-requantize", models[kind], again, "F32", "2"]
    subprocess.run(command, check=True, capture_output=True)
    expected = {one.name: one.data.ravel() for one in GGUFReader(again).tensors}
    content = models[kind].read_bytes()
    tensors = [one for one in read_gguf_header(models[kind], ()).tensors if one.kind == {"Q1_0": 41, "Q2_0": 42}[kind]]
    assert len(tensors) >= 2 * 7
    for tensor in tensors:
        data = np.frombuffer(content[tensor.begin : tensor.begin + tensor.size], np.uint8)
        values = nonfinite_weights._values(data, tensor.kind).ravel()
        assert np.array_equal(values, expected[tensor.name])


def test_nan_that_came_into_the_reference_since(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    faulty = shutil.copy(models["F16"], tmp_path / "faulty.gguf")
    job.reference(faulty)
    job.pipe()
    set_weight(faulty, "output.weight", 9, np.nan)
    with pytest.raises(OllamakeError, match=r"faulty\.gguf is damaged: its sha256 is .*, its record says"):
        job.quality(faulty, models["Q8_0"])


def test_a_text_that_is_too_short(program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    job = Job(program, tmp_path, random_text(CONTEXT * 3)[: CONTEXT * 2 - 1], chunks=2)
    with pytest.raises(OllamakeError, match=r"evaluation\.txt is too short.*needs 256 tokens.*it has 255"):
        job.reference(models["F16"])
    assert list(tmp_path.glob("*.kld*")) == []
    with pytest.raises(OllamakeError, match=r"63 scored tokens.*takes 1 chunks more"):
        Job(program, tmp_path, job.text, chunks=1).reference(models["F16"])


def test_fewer_chunks_than_were_counted(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    """Tokenizers may differ a little: what llama-perplexity used counts."""
    more = Job(job.program, tmp_path, job.text, chunks=CHUNKS + 2)
    record = more.reference(models["F16"])
    assert (record["chunks"], record["tokens"]) == (CHUNKS, CHUNKS * 63)
    assert more.quality(models["F16"], models["Q8_0"])["chunks"] == CHUNKS
    more.pipe()
    assert more.quality(models["F16"], models["Q8_0"])["chunks"] == CHUNKS


@pytest.mark.parametrize("parse_special", [True, False])
def test_special_tokens(program: Path, models: dict[str, Path], tmp_path: Path, parse_special: bool) -> None:
    turn = f"{SPECIAL[0]}user{SPECIAL[1]}"
    text = turn * 60
    job = Job(program, tmp_path, text, chunks=2, parse_special=parse_special)
    job.reference(models["F16"])
    vocabulary = SMALL.tokens()
    number = {token: index for index, token in enumerate(vocabulary)}
    pieces = re.findall(rf"{re.escape(SPECIAL[0])}|{re.escape(SPECIAL[1])}|.", text) if parse_special else list(text)
    expected = [number[piece] for piece in pieces][: 2 * CONTEXT]
    assert read_header(job.logits).tokens.ravel().tolist() == expected
    assert (number[SPECIAL[0]] in expected) == parse_special


def test_a_vocabulary_of_another_size(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    other = Shape(vocabulary=300, width=64, layers=1, feed_forward=64).write(tmp_path / "other.gguf")
    record = job.reference(models["F16"])
    base = job.quality(models["F16"], other, "base")
    assert re.search(r"vocabularies have 301 and 300 tokens", base["not_comparable"])
    assert (base["measured"], base["reference_sha256"], "kld" in base) == ("base", record["gguf_sha256"], False)
    with pytest.raises(OllamakeError, match=r"other\.gguf cannot be compared.*301 and 300 tokens"):
        job.quality(models["F16"], other)


def test_a_disk_that_gets_full(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    """llama-perplexity does not look whether it could write."""
    wrapper = tmp_path / "llama-perplexity"
    wrapper.write_text(
        f'#!/bin/sh\n"{job.program}" "$@"\nwhile [ "$1" != --kl-divergence-base ]; do shift; done\ntruncate -s -100 "$2"\n'
    )
    wrapper.chmod(0o755)
    with pytest.raises(OllamakeError, match=r"reference\.kld.* bytes; 6 chunks of 128 tokens.*disk"):
        Job(wrapper, tmp_path, job.text).reference(models["F16"])
    assert not job.logits.exists()


def test_a_gguf_that_cannot_be_loaded(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    job.reference(models["F16"])
    cut = tmp_path / "cut.gguf"
    for end, said in (
        (300, r"cut\.gguf cannot be read as a GGUF"),
        (-5000, r"cut\.gguf cannot be read as a GGUF \(it ends after \d+ bytes"),
    ):
        cut.write_bytes(models["Q8_0"].read_bytes()[:end])
        with pytest.raises(OllamakeError, match=said):
            job.quality(models["F16"], cut)
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(models["Q8_0"].read_bytes().replace(b"qwen2", b"qwen0"))
    with pytest.raises(
        OllamakeError, match=r"(?s)failed on \S*unknown\.gguf \(exit code 1\).* E .*unknown model architecture"
    ):
        job.quality(models["F16"], unknown)


def test_another_text_than_the_references(job: Job, models: dict[str, Path], tmp_path: Path) -> None:
    record = job.reference(models["F16"])
    job.write("reference", record | {"text_sha256": "another"})
    with pytest.raises(OllamakeError, match=r"another text than .*evaluation\.txt"):
        job.quality(models["F16"], models["Q8_0"])


def test_speed(llama_cpp: Callable[[str], Path], models: dict[str, Path], tmp_path: Path) -> None:
    digest = sha256_of(models["Q8_0"])
    (tmp_path / "record.json").write_text(json.dumps({"sha256": digest}))
    arguments = ["--type", "Q8_0", "--gguf", str(models["Q8_0"]), "--gguf-record", str(tmp_path / "record.json")]
    output = tmp_path / "speed.json"
    measure_speed.main(
        ["--program", str(llama_cpp("llama-bench")), *arguments, "--output", str(output), "--threads", "2"]
    )
    speed = json.loads(output.read_text())
    assert (speed["prompt"]["tokens"], speed["generation"]["tokens"], speed["repetitions"]) == (512, 64, 3)
    assert speed["prompt"]["per_second"] > 0
    assert speed["generation"]["per_second"] > 0
    assert (speed["threads"], speed["gguf_sha256"], speed["type"]) == (2, digest, "Q8_0")
    assert speed["cpu"]
    with pytest.raises(DamagedFile, match=r"nothing\.gguf is damaged: it cannot be read"):
        measure_speed.main(
            ["--program", str(llama_cpp("llama-bench")), "--type", "Q8_0", "--gguf", str(tmp_path / "nothing.gguf"),
             "--gguf-record", str(tmp_path / "record.json"), "--output", str(output), "--threads", "2"]
        )  # fmt: skip


def test_the_source_is_patched(program: Path) -> None:
    changes = json.loads((LLAMA_CPP / "source.json").read_text())["changes"]
    assert [change["file"] for change in changes] == [one.file for one in PATCH]
    for one in PATCH:
        text = (LLAMA_CPP / "source" / one.file).read_text(encoding="utf-8")
        assert text.count(one.new) == 1
    assert "--parse-special" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
