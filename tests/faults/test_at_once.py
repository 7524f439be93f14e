"""Two runs at once: in one folder the second is refused, in two folders both come to what they come to alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from dag_build import Build
from outcomes import Checked, Outcome
from running_build import RunningBuild, tree_of
from small_build import copied, differences, final_bytes
from snakemake_runs import REPOSITORY, run_snakemake
from watcher import Watcher

from ollamake.create_request import read_create_request, request_of_marker
from ollamake.file_digest import sha256_of
from ollamake.registration import marker_differences

ONE_JOB = ("--forcerun", "check_template", "--", "results/small/ollama/template_check.json")
"""A run of one job, which takes some seconds."""


def test_in_one_folder_the_second_is_refused_and_the_first_unharmed(
    undisturbed: Build, expected: dict[str, str], checked: Checked, tmp_path: Path
) -> None:
    build = copied(undisturbed, tmp_path / "work")
    with Watcher(build.folder / "results") as watcher, RunningBuild(build, tmp_path / "said", *ONE_JOB) as first:
        assert first.wait_until(lambda: first.job() is not None, 120)
        job = first.job()
        assert job is not None
        # However long it takes until the second one is there.
        os.kill(job.pid, signal.SIGSTOP)
        second = run_snakemake("--configfile", "mine.yaml", "--cores", "1", *ONE_JOB, folder=build.folder)
        planned = run_snakemake("--configfile", "mine.yaml", "-n", "all", folder=build.folder)
        os.kill(job.pid, signal.SIGCONT)
        code = first.wait_for_end(120)
    assert second.returncode == 1
    assert f"Another Snakemake is at work in {build.folder}: process {first.process.pid}." in second.stdout
    assert "Wait until it has ended" in second.stdout
    assert "Directory cannot be locked" in second.stdout
    assert "rule check_template" not in second.stdout
    # To look at what is to be done is no harm.
    assert planned.returncode == 0, planned.stdout
    wrong = differences(final_bytes(build.folder), expected)
    refused = Outcome("a second run in the folder", "-", "while a job runs", 0, "refused at once", code == 0, not wrong)
    checked([refused, *(Outcome(refused.kind, "-", "", 0, fault, False, False) for fault in watcher.take_faults())])


def test_what_a_killed_run_left_at_work_does_not_write_over_what_is_made_later(
    undisturbed: Build, checked: Checked, tmp_path: Path
) -> None:
    """It is held until the next run, with another configuration, is over; then it may go on, if it is still there."""
    build = copied(undisturbed, tmp_path / "work")
    rewriting = ("--forcerun", "write_modelfile", "--", "modelfiles")
    with RunningBuild(build, tmp_path / "said", *rewriting) as run:
        assert run.wait_until(lambda: (job := run.job()) is not None and job.rule == "write_modelfile", 120)
        job = run.job()
        assert job is not None
        held = tree_of(job.pid)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        run.process.kill()
        run.process.wait()
        assert set(held) <= set(run.processes())
        build.model()["ollama"]["parameters"]["temperature"] = 0.9
        build.write_config()
        said = build.run("--cores", "1", "modelfiles")
        assert "processes of a run in this folder that was killed" in said
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        left = run.left_after(10)
    files = list(build.folder.glob("results/small/ollama/*/Modelfile"))
    new = len(files) == 2 and all("temperature 0.9" in file.read_text(encoding="utf-8") for file in files)
    kind = "kill -9 of Snakemake, then another configuration"
    checked([Outcome(kind, "write_modelfile", "its job held until then", 0, "killed", not left, new)])


@pytest.mark.campaign
def test_two_folders_that_share_base_tools_and_store(
    inputs: Build, expected: dict[str, str], checked: Checked, tmp_path: Path
) -> None:
    """The same base by a link, the same llama.cpp; and what they register, in one store, is equal and of the same name."""
    builds = [copied(inputs, tmp_path / name) for name in ("one", "other")]
    for build in builds:
        shutil.rmtree(build.folder / "base")
        (build.folder / "base").symlink_to(inputs.folder / "base")
        (build.folder / "results").mkdir()
        (build.folder / "results/ollama-store").symlink_to(tmp_path / "store")
    (tmp_path / "store").mkdir()
    with RunningBuild(builds[0], tmp_path / "1") as one, RunningBuild(builds[1], tmp_path / "2") as other:
        codes = [run.wait_for_end(1200) for run in (one, other)]
    outcomes = []
    for build, code in zip(builds, codes, strict=True):
        wrong = differences(final_bytes(build.folder), expected_through_link(expected, tmp_path / "store"))
        how = "shared base, llama.cpp and store"
        outcomes.append(Outcome("two folders at once", "-", how, 0, "it finished", code == 0, not wrong, tuple(wrong)))
    checked(outcomes)
    assert broken_blobs(tmp_path / "store") == []


def expected_through_link(expected: dict[str, str], store: Path) -> dict[str, str]:
    """Return what is expected without the files of the store, which glob does not find through a link, but the link itself."""
    own = {name: digest for name, digest in expected.items() if not name.startswith("results/ollama-store/")}
    assert {file.name for file in (store / "blobs").iterdir()} == {
        Path(name).name for name in expected if name.startswith("results/ollama-store/blobs/")
    }
    return own


def broken_blobs(store: Path) -> list[str]:
    """Return what manifests name and is not there whole, and what is not what its name says."""
    found = [blob.name for blob in (store / "blobs").iterdir() if f"sha256-{sha256_of(blob)}" != blob.name]
    for manifest in (file for file in (store / "manifests").rglob("*") if file.is_file()):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        for layer in [*content["layers"], content["config"]]:
            blob = store / "blobs" / layer["digest"].replace(":", "-")
            if not blob.is_file() or blob.stat().st_size != layer["size"]:
                found.append(f"{manifest}: {layer['digest']}")
    return found


def test_eight_registrations_at_once_in_one_store(undisturbed: Build, checked: Checked, tmp_path: Path) -> None:
    """As from two machines on one disk: those of one do not see the lock of the others, which is in their own TMPDIR.

    Of each quantization there are four: two of one name that are equal, one of a name that both quantizations claim, and one
    of a name of its own.
    """
    store = tmp_path / "store"
    (store / "blobs").mkdir(parents=True)
    processes = []
    for number, (quant, name) in enumerate(
        (quant, name) for name in ("equal-{}", "equal-{}", "claimed-by-both", "own-{}") for quant in ("Q4_K_M", "Q8_0")
    ):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        processes.append(
            registering(undisturbed, quant, name.format(quant.lower()), store, folder, (number // 2 + number) % 2)
        )
    said = [process.communicate(timeout=120)[1] for process in processes]
    outcomes = []
    for number, process in enumerate(processes):
        marker_file = tmp_path / f"{number}/registered.json"
        clear = process.returncode == 0 or said[number].rstrip().rpartition("error: ")[2].endswith("run again.")
        assert clear, said[number]
        assert marker_file.exists() == (process.returncode == 0)
        ended = "registered" if process.returncode == 0 else "one clear message"
        outcomes.append(Outcome("registration at once with seven others", "register", "", 0, ended, True, True))
    assert broken_blobs(store) == []
    wrong = Counter(
        marker["name"]
        for marker in (json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*/registered.json"))
        if marker_differences(marker, *request_of_marker(marker))
    )
    # Of a name that two have claimed it is one of them.
    assert all(name == "claimed-by-both" and count == 1 for name, count in wrong.items()), wrong
    checked(outcomes)


def registering(build: Build, quant: str, name: str, store: Path, folder: Path, host: int) -> subprocess.Popen[str]:
    """Start scripts/register.py on a quantization of a build under another name, as on one of several machines."""
    results = build.folder / "results/small"
    request = read_create_request(results / f"ollama/{quant}/create_request.json").as_json() | {"name": name}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    temporary = folder.parent / f"host{host}"
    temporary.mkdir(exist_ok=True)
    place = {"target": "store", "host": None, "store": str(store)}
    command = [sys.executable, str(REPOSITORY / "scripts/register.py"), "--request", str(folder / "request.json")]
    command += [
        "--gguf",
        str(results / f"gguf/small.{quant}.gguf"),
        "--record",
        str(results / f"gguf/small.{quant}.json"),
    ]
    command += ["--spec", json.dumps(place), "--output", str(folder / "registered.json")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
