"""Weights from a bucket of S3 and results into it, in working directories that begin empty (profiles/s3)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from bucket_server import ServedBucket, served_bucket
from dag_build import PAGES, Build
from snakemake_plugins import with_plugins
from snakemake_runs import REPOSITORY, planned_jobs, run_snakemake

PREFIX = "team/models"
TO_REGISTER = {"register": 2}


@dataclass
class InBucket:
    """A working directory that is the copy of what is below a prefix of a bucket."""

    folder: Path
    bucket: ServedBucket
    config: dict[str, Any]

    def snakemake(self, *arguments: str) -> str:
        """Run Snakemake with the profile and return what it printed; it must end well."""
        done = self.attempt(f"s3://{self.bucket.name}/{PREFIX}", *arguments)
        assert done[0] == 0, done[1]
        return done[1]

    def attempt(self, prefix: str, *arguments: str, **environment: str) -> tuple[int, str]:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(self.config, allow_unicode=True), encoding="utf-8")
        options = ["--profile", REPOSITORY / "profiles/s3", "--default-storage-prefix", prefix]
        options += ["--configfile", "mine.yaml"]
        known = self.bucket.environment() | with_plugins() | environment
        done = run_snakemake(*options, *arguments, folder=self.folder, **known)
        return done.returncode, done.stdout

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return rule -> number of jobs of a dry run, without `all` and the pages of the report."""
        jobs = planned_jobs(self.snakemake("-n", *arguments, "all"))
        return {rule: count for rule, count in jobs.items() if rule not in (*PAGES, "all")}

    def weights(self) -> list[str]:
        """Return the names of weight files that are in the working directory."""
        found = [*self.folder.rglob("*.safetensors"), *self.folder.rglob("*.gguf")]
        return sorted(file.name for file in found if not file.is_symlink())

    def elsewhere(self, folder: Path) -> InBucket:
        """Return an empty working directory for the same."""
        return InBucket(folder, self.bucket, json.loads(json.dumps(self.config)))


@pytest.fixture(scope="module")
def bucket(finished: Build) -> Iterator[ServedBucket]:
    with served_bucket("weights") as bucket:
        for name in ("base", "adapter"):
            bucket.upload(finished.folder / name, f"{PREFIX}/{name}")
        yield bucket


@pytest.fixture(scope="module")
def first(finished: Build, bucket: ServedBucket, tmp_path_factory: pytest.TempPathFactory) -> InBucket:
    """A build of what is in the bucket, in a directory that was empty. Its store is shared with other directories."""
    folder = tmp_path_factory.mktemp("bucket")
    config = json.loads(json.dumps(finished.config))
    config["ollama"]["store"] = str(folder / "store")
    config["keep"] = {"unquantized": False}
    first = InBucket(folder / "first", bucket, config)
    planned = first.planned()
    assert planned["merge_shard"] == 3
    assert planned["quantize"] == 2
    assert first.weights() == [], "a dry run needs no weights"
    first.snakemake("--cores", "2", "all")
    return first


def test_same_bytes_as_without_a_bucket(finished: Build, first: InBucket) -> None:
    results = finished.folder / "results/small"
    made = sorted((*results.glob("merged/*.safetensors"), *results.glob("gguf/small.Q*.gguf")))
    assert len(made) == 5
    for file in (*made, *results.glob("ollama/*/Modelfile"), results / "merged/tokenizer.json"):
        key = f"{PREFIX}/results/small/{file.relative_to(results)}"
        assert hashlib.sha256(first.bucket.read(key)).digest() == hashlib.sha256(file.read_bytes()).digest(), key


def test_what_is_not_kept_is_no_object(first: InBucket) -> None:
    keys = first.bucket.sizes()
    assert f"{PREFIX}/results/small/gguf/small.unquantized.json" in keys
    assert not [key for key in keys if key.endswith(".unquantized.gguf")]
    assert "small.unquantized.gguf" not in first.weights()


def test_no_path_of_the_machine_is_in_the_bucket(first: InBucket) -> None:
    keys = [key for key in first.bucket.sizes() if "/results/" in key and key.endswith(".json")]
    assert len(keys) > 10
    assert [key for key in keys if str(first.folder).encode() in first.bucket.read(key)] == []


def test_a_second_run_has_nothing_to_do(first: InBucket) -> None:
    assert first.planned() == {}


def test_nor_has_a_run_in_an_empty_directory(first: InBucket, tmp_path: Path) -> None:
    second = first.elsewhere(tmp_path / "second")
    assert second.planned() == {}
    assert second.weights() == []


def test_an_empty_store_gets_the_ggufs_from_the_bucket(first: InBucket, tmp_path: Path) -> None:
    """As where a pod had the store on its own disk."""
    store = Path(first.config["ollama"]["store"])
    shutil.rmtree(store)
    second = first.elsewhere(tmp_path / "second")
    assert second.planned() == TO_REGISTER
    second.snakemake("--cores", "2", "registered")
    assert second.weights() == ["small.Q4_K_M.gguf", "small.Q8_0.gguf"]
    gguf = first.bucket.read(f"{PREFIX}/results/small/gguf/small.Q8_0.gguf")
    assert (store / f"blobs/sha256-{hashlib.sha256(gguf).hexdigest()}").read_bytes() == gguf


def test_a_change_of_the_prompt_touches_no_weights(first: InBucket, tmp_path: Path) -> None:
    second = first.elsewhere(tmp_path / "second")
    second.config["models"]["small"]["ollama"]["system"] = "Another."
    assert second.planned() == {"write_modelfile": 2, **TO_REGISTER}


def test_another_adapter_in_the_bucket_is_merged(first: InBucket, tmp_path: Path) -> None:
    key = f"{PREFIX}/adapter/adapter_model.safetensors"
    before = first.bucket.read(key)
    try:
        # One bit of the last weight.
        first.bucket.client.put_object(
            Bucket=first.bucket.name, Key=key, Body=before[:-2] + bytes([before[-2] ^ 1]) + before[-1:]
        )
        for place in (first, first.elsewhere(tmp_path / "second")):
            planned = place.planned()
            assert (planned["merge_shard"], planned["quantize"], planned["register"]) == (3, 2, 2)
    finally:
        first.bucket.client.put_object(Bucket=first.bucket.name, Key=key, Body=before)
    assert first.planned() == {}, "the same content under another time"


SUBMIT = """#!/bin/bash
# Run a job of Snakemake as on another machine: in an empty folder with the configuration, and with the bucket.
# The folder is as deep as the working directory, since the path of the Snakefile is relative to that.
machine=$(mktemp --directory {machines}/machine.XXXXXX)
cp {place}/mine.yaml "$machine"
sed "s#{place}#$machine#g" "$1" >"$machine/job.sh"
(cd "$machine"; bash job.sh &>said.log; echo $? >code.tmp; mv code.tmp code) &>/dev/null &
echo "$machine"
"""
STATUS = """#!/bin/bash
[ -e "$1/code" ] || { echo running; exit; }
[ "$(cat "$1/code")" = 0 ] && echo success || echo failed
"""


def test_machines_that_share_no_disk_pass_files_through_the_bucket(
    finished: Build, bucket: ServedBucket, tmp_path: Path
) -> None:
    """Also those that are not kept. What Snakemake runs beside itself, it runs here: registration, and jobs of seconds."""
    place = InBucket(tmp_path / "place", bucket, json.loads(json.dumps(finished.config)))
    for name, text in (("submit", SUBMIT.format(machines=tmp_path, place=place.folder)), ("status", STATUS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    prefix = "apart"
    for name in ("base", "adapter"):
        bucket.upload(finished.folder / name, f"{prefix}/{name}")
    place.config["models"]["small"]["quantizations"] = ["Q8_0"]
    place.config["keep"] = {"merged": False, "unquantized": False}
    options = ["--executor", "cluster-generic", "--shared-fs-usage", "none", "--jobs", "2", "--local-cores", "2"]
    options += [f"--cluster-generic-{name}-cmd={tmp_path / name}" for name in ("submit", "status")]
    code, said = place.attempt(f"s3://{bucket.name}/{prefix}", *options, "--seconds-between-status-checks", "1", "gguf")
    logs = "".join(file.read_text(encoding="utf-8") for file in tmp_path.glob("machine.*/said.log"))
    assert code == 0, said + logs
    machines = list(tmp_path.glob("machine.*"))
    there = [{file.relative_to(machine) for file in machine.rglob("*")} for machine in machines]
    assert len(there) == 5, "three shards, a conversion, a quantization"
    gguf = Path("results/small/gguf/small.Q8_0.gguf")
    assert sum(gguf in files for files in there) == 1
    assert bucket.read(f"{prefix}/{gguf}") == (finished.folder / gguf).read_bytes()
    kept = [
        key
        for key in bucket.sizes()
        if key.startswith(f"{prefix}/results/") and key.endswith((".gguf", ".safetensors"))
    ]
    assert kept == [f"{prefix}/{gguf}"]


def test_what_is_missing_is_said_with_its_place(first: InBucket, tmp_path: Path) -> None:
    second = first.elsewhere(tmp_path / "second")
    second.config["models"]["small"]["base"] = "bse"
    code, said = second.attempt(f"s3://{first.bucket.name}/{PREFIX}", "-n", "all")
    assert code != 0
    assert f"models.small.base (nothing is in s3://{first.bucket.name}/{PREFIX}/bse)" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("prefix", "environment", "message"),
    [
        ("weights", {}, "--default-storage-prefix: expected s3://BUCKET"),
        ("s3://weights", {"SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot be listed: Could not connect"),
    ],
)  # fmt: skip
def test_a_bucket_that_cannot_be_had_is_one_message(
    prefix: str, environment: dict[str, str], message: str, first: InBucket, tmp_path: Path
) -> None:
    one_try = ("--storage-s3-retries", "1")
    code, said = first.elsewhere(tmp_path / "second").attempt(prefix, *one_try, "-n", "all", **environment)
    assert code != 0
    assert message in said
    assert "Traceback" not in said
