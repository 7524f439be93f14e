"""One flipped bit in each kind of file of a finished build: `verify` finds exactly it, and its command has it made again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from campaigns import one_in
from dag_build import Build
from snakemake_runs import REPOSITORY

pytestmark = pytest.mark.faults

TEXT = "設計速度80km/hの道路の最小曲線半径は280mである。 The clothoid joins a straight and a curve.\n"
CALIBRATION = "縦断曲線は勾配の変化点で衝撃を和らげる。 Gutters carry the water of the road away.\n"
RESULTS = "results/small"

WEIGHTS = {
    "a merged shard": f"{RESULTS}/merged/model-00002-of-00003.safetensors",
    "a config": f"{RESULTS}/merged/config.json",
    "a tokenizer": f"{RESULTS}/merged/tokenizer.json",
    "an unquantized GGUF": f"{RESULTS}/gguf/small.unquantized.gguf",
    "a quantized GGUF": f"{RESULTS}/gguf/small.Q4_K_M.gguf",
    "an importance matrix": f"{RESULTS}/gguf/small.imatrix.gguf",
    "a prepared text": f"{RESULTS}/quality/evaluation.txt",
    "a bitsandbytes shard": f"{RESULTS}/bitsandbytes/nf4/model-00001-of-00003.safetensors",
    "a bitsandbytes config": f"{RESULTS}/bitsandbytes/nf4/config.json",
    "a tokenizer to serve": f"{RESULTS}/serve/merged/tokenizer_config.json",
}
RECORDS = {
    "the check of the inputs": f"{RESULTS}/inputs.json",
    "a merge plan": f"{RESULTS}/merge_plan.json",
    "a merge record": f"{RESULTS}/merge_records/model-00002-of-00003.json",
    "a merge report": f"{RESULTS}/merge_report.json",
    "a list of model files": f"{RESULTS}/merged/model_files.json",
    "the record of the unquantized GGUF": f"{RESULTS}/gguf/small.unquantized.json",
    "the record of a GGUF": f"{RESULTS}/gguf/small.Q8_0.json",
    "the record of a matrix": f"{RESULTS}/gguf/small.imatrix.json",
    "the record of a text": f"{RESULTS}/quality/calibration.json",
    "the quality of a type": f"{RESULTS}/quality/Q8_0.json",
    "a verdict": f"{RESULTS}/quality/Q8_0.verdict.json",
    "the quality": f"{RESULTS}/quality.json",
    "the record of a checkpoint": f"{RESULTS}/bitsandbytes/nf4.json",
    "the record of a bitsandbytes shard": f"{RESULTS}/bitsandbytes_records/nf4/model-00001-of-00003.json",
    "a template": f"{RESULTS}/ollama/template.json",
    "a create request": f"{RESULTS}/ollama/Q8_0/create_request.json",
    "a marker": f"{RESULTS}/ollama/Q8_0/registered.json",
    "the check of the template": f"{RESULTS}/ollama/template_check.json",
    "the record of what is served": f"{RESULTS}/serve/merged/serving.json",
    "a plan": f"{RESULTS}/plan.json",
}
TEXTS = {
    "a Modelfile": f"{RESULTS}/ollama/Q4_K_M/Modelfile",
    "the arguments of a server": f"{RESULTS}/serve/merged/vllm.yaml",
    "a table": f"{RESULTS}/quality.md",
    "a picture": f"{RESULTS}/merge_report.svg",
    "a page": f"{RESULTS}/overview.html",
}
KINDS = WEIGHTS | RECORDS | TEXTS
WITH_TIMES = ("inputs.json", "times.json", "registered.json", "overview.html", "plan.md", "plan.html", "Q8_0.json")
"""Files that say when or how fast something was done."""


@pytest.fixture(scope="module")
def whole(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A finished build with every kind of file. Tests that edit take a copy."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    build = Build(folder, json.loads(json.dumps(finished.config)))
    (folder / "evaluation.txt").write_text(TEXT * 40, encoding="utf-8")
    (folder / "calibration.txt").write_text(CALIBRATION * 40, encoding="utf-8")
    build.model().update(
        imatrix={"text": ["calibration.txt"], "context": 128},
        quality={"text": ["evaluation.txt"], "context": 128, "chunks": 8, "max_kld_mean": 5.0, "speed": False},
        bitsandbytes={"types": ["nf4"]},
        serving={"checkpoints": ["merged"]},
    )
    build.write_config()
    build.run("--cores", "2", "all")
    return build


@pytest.fixture
def copy(whole: Build, tmp_path: Path) -> Iterator[Build]:
    """A copy of it, to be damaged; a GGUF and its blob in the store stay one file."""
    folder = tmp_path / "work"
    subprocess.run(["cp", "-a", whole.folder, folder], check=True)
    yield Build(folder, json.loads(json.dumps(whole.config)))
    shutil.rmtree(folder)


def flip(file: Path, seed: str) -> None:
    """Flip one bit, and leave size and time as they are."""
    status, content = file.stat(), bytearray(file.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def verify(folder: Path) -> str:
    """Return what scripts/verify.py says of what is wrong; "" if nothing is."""
    markers = [f"{RESULTS}/ollama/{kind}/registered.json" for kind in ("Q4_K_M", "Q8_0")]
    command = [sys.executable, str(REPOSITORY / "scripts/verify.py"), "--results", RESULTS, "results/small-base"]
    done = subprocess.run([*command, "--markers", *markers], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == ("error:" not in done.stderr), done.stderr
    return done.stderr.partition("error: ")[2]


def told(said: str) -> set[str]:
    """Return the files that a message of verify names as damaged."""
    return {line.strip().partition(": ")[0] for line in said.splitlines() if re.match(r"  \S+: ", line)}


def mend(build: Build, said: str) -> None:
    """Do what the message says."""
    (command,) = re.findall(r"^  (rm -f .* && snakemake .*)$", said, re.MULTILINE)
    remove, _, make = command.partition(" && ")
    subprocess.run(shlex.split(remove), cwd=build.folder, check=True)
    build.run(*shlex.split(make)[1:])


def bytes_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of all results that say nothing of times."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "results").rglob("*"))
        if file.is_file() and file.name not in WITH_TIMES and file.suffix != ".html"
    }


def with_its_blob(build: Build, name: str) -> set[str]:
    """Return a file and, where the store has it by a hard link, the blob."""
    status = (build.folder / name).stat()
    blobs = (build.folder / "results/ollama-store/blobs").iterdir()
    return {name} | {
        f"results/ollama-store/blobs/{blob.name}" for blob in blobs if os.path.samestat(blob.stat(), status)
    }


def test_nothing_is_wrong_with_a_finished_build_and_every_file_of_it_is_known(whole: Build) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.folder.glob("results/**/*")}
    said = whole.run("--cores", "1", "verify")
    assert "small: as built: " in said
    assert "not sealed" not in said
    assert {file: file.stat().st_mtime_ns for file in whole.folder.glob("results/**/*")} == before


@pytest.mark.parametrize("kind", one_in(5, KINDS))
def test_a_flipped_bit_is_found(copy: Build, kind: str) -> None:
    name = KINDS[kind]
    flip(copy.folder / name, kind)
    said = verify(copy.folder)
    assert told(said) == with_its_blob(copy, name)
    assert re.search(r"^  rm -f .* && snakemake --cores 1 .* all$", said, re.MULTILINE)


def test_a_flipped_bit_in_a_small_blob_is_found(copy: Build) -> None:
    blobs = sorted((copy.folder / "results/ollama-store/blobs").iterdir(), key=lambda file: file.stat().st_size)
    flip(blobs[0], "blob")
    assert told(verify(copy.folder)) == {f"results/ollama-store/blobs/{blobs[0].name}"}


def test_a_hundred_flipped_bits_in_records_are_found(copy: Build) -> None:
    for number in range(100):
        name = random.Random(number).choice(sorted({**RECORDS, **TEXTS}.values()))
        content = (copy.folder / name).read_bytes()
        flip(copy.folder / name, str(number))
        assert told(verify_quickly(copy.folder)) == {name}, number
        (copy.folder / name).write_bytes(content)


def verify_quickly(folder: Path) -> str:
    """Return what is wrong with the records alone, in this process."""
    from ollamake.written_files import known_files, sealed_files

    before = Path.cwd()
    os.chdir(folder)
    try:
        known = {file.path for file in known_files(Path(RESULTS))} | {
            Path(RESULTS, "merged", name) for name in ("config.json", "tokenizer.json")
        }
        return "\n".join(f"  {damage.path}: {damage.what}" for damage in sealed_files(Path(RESULTS), known)[2])
    finally:
        os.chdir(before)


@pytest.mark.campaign
def test_the_command_mends_everything_to_the_same_bytes(copy: Build) -> None:
    before = bytes_of(copy.folder)
    for kind, name in KINDS.items():
        flip(copy.folder / name, kind)
    said = verify(copy.folder)
    assert told(said) >= set(RECORDS.values())
    mend(copy, said)
    # What a damaged record knew is found out when the record is there again.
    if said := verify(copy.folder):
        mend(copy, said)
    assert verify(copy.folder) == ""
    assert bytes_of(copy.folder) == before


@pytest.mark.parametrize("kind", ["a quantized GGUF", pytest.param("a tokenizer", marks=pytest.mark.campaign)])
def test_the_command_mends_one_file_to_the_same_bytes(copy: Build, kind: str) -> None:
    before = bytes_of(copy.folder)
    flip(copy.folder / KINDS[kind], kind)
    mend(copy, verify(copy.folder))
    assert verify(copy.folder) == ""
    assert bytes_of(copy.folder) == before


SOURCES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a base shard of the same size and time": (
        "base/model-00002-of-00003.safetensors",
        lambda file: flip(file, "base"),
    ),
    "an adapter edited in place": ("adapter/adapter_model.safetensors", lambda file: flip(file, "adapter-7")),
}


def test_a_small_source_edited_with_size_and_time_kept_is_planned(copy: Build) -> None:
    """Small files are compared by content at each start; verify names it as well."""
    name = "base/tokenizer_config.json"
    flip(copy.folder / name, "tokenizer")
    assert copy.planned()["write_model_files"] == 2
    assert told(verify(copy.folder)) == {name}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_was_replaced_with_size_and_time_kept_is_found(copy: Build, kind: str) -> None:
    name, replace = SOURCES[kind]
    replace(copy.folder / name)
    assert copy.planned() == {}, "the workflow itself does not see it"
    said = verify(copy.folder)
    assert told(said) == {name}
    assert f"\n  touch {name} && snakemake --cores 1 all" in said


def replace_and_touch(build: Build) -> None:
    """Put other weights into a base shard whose time is then that of the results, and do what verify says."""
    shard = build.folder / "base/model-00002-of-00003.safetensors"
    with shard.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    os.utime(shard, ns=(0, (build.folder / "results").stat().st_mtime_ns))
    os.utime(shard)


def test_a_replaced_source_is_merged_when_it_is_touched(copy: Build) -> None:
    replace_and_touch(copy)
    planned = copy.planned()
    assert planned["merge_shard"] >= 2, "of the model, and of the base that it is compared with"
    assert planned["quantize"] == planned["register"] == 2


@pytest.mark.campaign
def test_a_replaced_source_is_taken_when_it_is_touched(copy: Build) -> None:
    replace_and_touch(copy)
    copy.run("--cores", "1", "all")
    assert verify(copy.folder) == ""


SHARD, UNQUANTIZED = KINDS["a merged shard"], KINDS["an unquantized GGUF"]
READERS = {
    "convert_to_gguf": (SHARD, f"{RESULTS}/gguf/small.conversion.json"),
    "quantize": (UNQUANTIZED, f"{RESULTS}/gguf/small.Q8_0.gguf"),
    "quantize with a matrix": (KINDS["an importance matrix"], f"{RESULTS}/gguf/small.Q4_K_M.gguf"),
    "compute_imatrix": (UNQUANTIZED, f"{RESULTS}/gguf/small.imatrix.gguf"),
    "evaluate_quality": (f"{RESULTS}/gguf/small.Q8_0.gguf", f"{RESULTS}/quality/Q8_0.json"),
    "quantize_bitsandbytes": (SHARD, f"{RESULTS}/bitsandbytes/nf4/model-00002-of-00003.safetensors"),
    "check_template": (f"{RESULTS}/gguf/small.Q4_K_M.gguf", f"{RESULTS}/ollama/template_check.json"),
    "choose_template": (KINDS["a tokenizer"], f"{RESULTS}/ollama/template.json"),
    "merge_shard": (KINDS["a merge plan"], SHARD),
    "write_modelfile": (KINDS["a template"], f"{RESULTS}/ollama/Q8_0/Modelfile"),
}
"""Rule -> what is damaged, and what is to be made of it."""


@pytest.mark.parametrize("reader", one_in(3, READERS))
def test_a_job_that_reads_a_damaged_file_publishes_nothing_and_says_what_to_rebuild(copy: Build, reader: str) -> None:
    damaged, made = READERS[reader]
    (copy.folder / made).unlink()
    flip(copy.folder / damaged, reader)
    said = copy.run_to_failure("--cores", "1", "--rerun-triggers", "mtime", "--", made)
    assert f"{reader.partition(' ')[0]}" in said
    target = KINDS["a list of model files"] if damaged == KINDS["a tokenizer"] else damaged
    assert f"rm -f {target} && snakemake --cores 1 {target} all" in said
    assert "Traceback (most recent call last)" not in said
    assert not (copy.folder / made).exists()


def test_a_registration_that_reads_a_damaged_gguf_registers_nothing(copy: Build) -> None:
    gguf = f"{RESULTS}/gguf/small.Q8_0.gguf"
    digest = json.loads((copy.folder / gguf).with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    (copy.folder / f"results/ollama-store/blobs/sha256-{digest}").unlink()
    flip(copy.folder / gguf, "register")
    said = copy.run_to_failure("--cores", "1", "--rerun-triggers", "mtime", "--", "registered")
    assert f"rm -f {gguf} && snakemake --cores 1 {gguf} all" in said


def test_a_merge_that_reads_a_replaced_base_again_merges_nothing(copy: Build) -> None:
    name = "base/model-00002-of-00003.safetensors"
    (copy.folder / SHARD).unlink()
    with (copy.folder / name).open("r+b") as file:
        status = os.fstat(file.fileno())
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    os.utime(copy.folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    said = copy.run_to_failure("--cores", "1", "--", SHARD)
    assert f"{name}: it has other bytes than when it was read before, with the same size and time" in said
    assert f"touch {name} && snakemake --cores 1 all" in said
    assert not (copy.folder / SHARD).exists()
