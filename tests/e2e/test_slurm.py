"""Builds by `snakemake --profile profiles/slurm` on a real SLURM of one node: the same bytes as here, whatever jobs meet."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dag_build import save_small_adapter, save_small_base
from slurm_cluster import Cluster, install_slurm, missing_programs, one_node_cluster
from snakemake_runs import LLAMA_CPP, REPOSITORY, planned_jobs, run_snakemake, snakemake_command

from ollamake.file_digest import sha256_of

ON_SLURM = (
    "--default-resources", "slurm_partition=main", "--profile", str(REPOSITORY / "profiles/slurm"), "--configfile", "mine.yaml",
    "--cores", "2", "--latency-wait", "20", "--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", "squeue",
)  # fmt: skip
"""As a user says it, but for the node's two cores, seconds instead of minutes, and a SLURM that keeps no accounts."""
SECONDS = 300.0
"""For whatever a test waits for."""


@pytest.fixture(scope="module", autouse=True)
def no_ollama() -> Iterator[None]:
    """No Ollama on PATH, where other tests may have put one: it serves the store, and writes the store's path into manifests."""
    folders = os.environ["PATH"].split(os.pathsep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join(one for one in folders if not Path(one, "ollama").exists()))
        assert shutil.which("ollama") is None
        yield


@pytest.fixture(scope="module")
def cluster(no_ollama: None) -> Iterator[Cluster]:
    """A SLURM whose only node is this machine, from Debian's packages, which are installed where they are missing."""
    if missing_programs():
        fault = install_slurm()
        if fault is not None:
            pytest.skip(f"no SLURM here, and Debian's packages of it cannot be installed ({fault})")
    with one_node_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def inputs(no_ollama: None, llama_cpp: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small base in three shards, an adapter, and a configuration; nothing is built in it."""
    for program in ("llama-quantize", "llama-tokenize", "llama-fit-params"):
        llama_cpp(program)
    folder = tmp_path_factory.mktemp("inputs") / "work"
    save_small_base(folder / "base")
    save_small_adapter(folder / "base", folder / "adapter")
    config = {
        "models": {"small": {"base": "base", "adapter": "adapter", "quantizations": ["Q4_K_M", "Q8_0"]}},
        "ollama": {"target": "store"},
        "tools": {"llama_cpp": str(LLAMA_CPP)},
        "hardware": {"gpus": [{"name": "RTX 4090", "memory_gib": 24}], "ram_gib": 64},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def copy_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "work", symlinks=True))


@pytest.fixture(scope="module")
def local(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, built here."""
    folder = copy_of(inputs, tmp_path_factory)
    done = run_snakemake("--cores", "1", "all", "--configfile", "mine.yaml", folder=folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def work(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the inputs."""
    return copy_of(inputs, tmp_path_factory)


def on_slurm(cluster: Cluster, work: Path, *arguments: str) -> str:
    """Run the workflow on the cluster and return what it printed; it must end well."""
    done = run_snakemake(*ON_SLURM, *arguments, folder=work, **cluster.environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Run:
    """The workflow on the cluster, in the background: the test does something to its jobs meanwhile."""

    cluster: Cluster
    process: subprocess.Popen[bytes]
    file: Path

    @property
    def printed(self) -> str:
        return self.file.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, is_so: Callable[[], Any]) -> Any:
        """Return the first true value of ``is_so``, which must come while the run is going on."""
        end = time.monotonic() + SECONDS
        while not (value := is_so()):
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < end, (self.cluster.queue(), self.printed)
            time.sleep(0.1)
        return value

    def end(self) -> int:
        """Wait for the end of the run and return its exit code."""
        return self.process.wait(SECONDS)


@contextmanager
def run_on_slurm(cluster: Cluster, work: Path, *arguments: str) -> Iterator[Run]:
    """Run the workflow on the cluster; with the block it is over."""
    command = snakemake_command(*ON_SLURM, *arguments, folder=work)
    file = work / "printed"
    with file.open("wb") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, cwd=work, env={**os.environ, **cluster.environment}
        )
    try:
        yield Run(cluster, process, file)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def submitted(printed: str) -> dict[str, str]:
    """Return SLURM's number of each job that was submitted -> its rule, or its group."""
    lines = re.findall(
        r"has been submitted with SLURM jobid (\d+) \(log: \S+/slurm_logs/(?:rule|group)_(\w+)/", printed
    )
    assert len(lines) == printed.count("has been submitted with SLURM jobid"), printed
    return dict(lines)


def bytes_of(work: Path, *patterns: str) -> dict[str, str]:
    """Return file -> sha256 of what is built."""
    results = work / "results"
    found = [file for pattern in patterns for file in sorted(results.glob(pattern)) if file.is_file()]
    assert found, patterns
    return {str(file.relative_to(results)): sha256_of(file) for file in found}


MERGED = ("small/merged/*",)
GGUFS = (*MERGED, "small/gguf/*.gguf")
ALL = (*GGUFS, "small/ollama/*/Modelfile", "small/ollama/*/create_request.json", "ollama-store/**/*")


def files_in(work: Path) -> set[str]:
    """Return all files of the results, also those that somebody began and left."""
    return {str(file.relative_to(work)) for file in (work / "results").rglob("*") if file.is_file()}


def running(cluster: Cluster, rule: str) -> str | None:
    """Return the number of a running job of a rule, if there is one."""
    return next((number for number, state, of in cluster.queue() if state == "RUNNING" and f"rule_{rule}_" in of), None)


def test_the_same_bytes_as_here_though_a_job_is_killed(cluster: Cluster, work: Path, local: Path) -> None:
    with run_on_slurm(cluster, work, "all") as run:
        killed = run.wait_until(lambda: running(cluster, "merge_shard"))
        shard = next(of for number, _, of in cluster.queue() if number == killed).rpartition("small_")[2]
        # Its log is there as soon as the merge itself runs.
        run.wait_until((work / f"logs/merge_shard/small/{shard.replace('_', '-of-')}.log").exists)
        cluster.command("scancel", killed)
        assert run.end() == 0, run.printed
    assert f"SLURM-job '{killed}' failed, SLURM status is: 'CANCELLED'" in run.printed
    assert bytes_of(work, *ALL) == bytes_of(local, *ALL)
    assert files_in(work) == files_in(local)
    for quantization in ("Q4_K_M", "Q8_0"):
        marker = f"results/small/ollama/{quantization}/registered.json"
        here, there = (json.loads((folder / marker).read_text(encoding="utf-8")) for folder in (local, work))
        assert there["manifest_digest"] == here["manifest_digest"]
    # What SLURM itself says of the jobs: the heavy ones went there, with the cores that they use; again with more time.
    rules = submitted(run.printed)
    ended = [job for job in cluster.finished() if job.number in rules]
    assert Counter((rules[job.number], job.state, job.cores, job.minutes) for job in ended) == {
        ("merge_shard", "COMPLETED", 1, 60): 2,
        ("merge_shard", "CANCELLED", 1, 60): 1,
        ("merge_shard", "COMPLETED", 1, 120): 1,
        ("convert_to_gguf", "COMPLETED", 1, 240): 1,
        ("quantize", "COMPLETED", 2, 240): 2,
    }
    # Whatever asks Ollama ran on this machine, one after the other.
    asking = r"^Job (\d+): (?:Registering|Checking how)|^Finished jobid: (\d+) \(Rule: (?:register|check_template)\)"
    events = re.findall(asking, run.printed, re.MULTILINE)
    began, ended = [pair[0] for pair in events[::2]], [pair[1] for pair in events[1::2]]
    assert began == ended
    assert len(set(began)) == 3
    # Nothing was planned before the inputs had passed their check.
    assert run.printed.index("(Rule: check_inputs)") < run.printed.index("Planning the merge")
    # Nothing is left to do, neither there nor here.
    assert planned_jobs(on_slurm(cluster, work, "all")) == {}
    here = run_snakemake("-n", "all", "--configfile", "mine.yaml", folder=work)
    assert planned_jobs(here.stdout) == {}


@contextmanager
def drained(cluster: Cluster) -> Iterator[None]:
    """Give the node no new jobs in the block, as an administrator would."""
    cluster.command("scontrol", "update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=disk")
    try:
        yield
    finally:
        cluster.command("scontrol", "update", f"NodeName={cluster.node}", "State=RESUME")


def test_a_drained_node(cluster: Cluster, local: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs there comes to its end, the rest waits. Ctrl-C takes it back and leaves nothing; the next run goes on."""
    work = copy_of(local, tmp_path_factory)
    shutil.rmtree(work / "results/small/gguf")
    with run_on_slurm(cluster, work, "gguf") as run:
        converting = run.wait_until(lambda: running(cluster, "convert_to_gguf"))
        with drained(cluster):
            waiting = run.wait_until(lambda: [job for job in cluster.queue() if "rule_quantize_" in job[2]][1:])
            assert [state for _, state, _ in waiting] == ["PENDING"]
            assert next(job.state for job in cluster.finished() if job.number == converting) == "COMPLETED"
            run.process.send_signal(signal.SIGINT)
            assert run.end() == 1
            assert "Terminating processes on user request" in run.printed
            assert cluster.queue() == []
    missing = {f"results/small/gguf/small.{kind}.{end}" for kind in ("Q4_K_M", "Q8_0") for end in ("gguf", "json")}
    assert files_in(work) == files_in(local) - missing
    printed = on_slurm(cluster, work, "gguf")
    assert Counter(submitted(printed).values()) == {"quantize": 2}
    assert bytes_of(work, *GGUFS) == bytes_of(local, *GGUFS)


def test_shards_in_one_submission(cluster: Cluster, work: Path, local: Path) -> None:
    printed = on_slurm(cluster, work, "merged", "--groups", "merge_shard=merging", "--group-components", "merging=10")
    jobs = submitted(printed)
    assert list(jobs.values()) == ["merging_merge_shard"]
    # One after the other: what the largest takes, as long as all of them may take.
    (job,) = (job for job in cluster.finished() if job.number in jobs)
    assert (job.state, job.cores, job.minutes) == ("COMPLETED", 1, 3 * 60)
    assert 1000 < job.memory < 1500
    assert bytes_of(work, *MERGED) == bytes_of(local, *MERGED)
