"""What is known of a bucket whose copy the working directory is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import ServedBucket, served_bucket

from ollamake.bucket import LARGEST_SMALL_FILE, Bucket
from ollamake.errors import OllamakeError


@pytest.fixture(scope="module")
def served() -> Iterator[ServedBucket]:
    with served_bucket("weights") as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(served: ServedBucket, prefix: str, **contents: bytes) -> Bucket:
    for name, content in contents.items():
        served.client.put_object(Bucket=served.name, Key=f"{prefix}/{name.replace('__', '/')}", Body=content)
    return Bucket(served.client, served.name, prefix)


def test_a_listing_ends_at_the_prefix(served: ServedBucket) -> None:
    put(served, "names", base__config=b"{}", base__deeper__config=b"{}")
    put(served, "names2", base__other=b"")
    bucket = Bucket(served.client, served.name, "names")
    assert bucket.names_in("base") == {"config"}
    assert "base/deeper/config" in bucket
    assert "base/other" not in bucket
    assert bucket.query("base/config") == "s3://weights/names/base/config"


def test_more_than_one_page_of_a_listing(served: ServedBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    bucket = put(served, "many", **{f"file{number}": b"" for number in range(5)})
    assert served.client.list_objects_v2(Bucket=served.name, Prefix="many/")["IsTruncated"]
    assert len(bucket.known) == 5


def test_the_identity_follows_the_content(served: ServedBucket) -> None:
    first = put(served, "identity", weights=b"1").identity("weights")
    again = put(served, "identity", weights=b"1").identity("weights")
    other = put(served, "identity", weights=b"2").identity("weights")
    assert first == again
    assert first != other
    assert Bucket(served.client, served.name, "identity").identity("elsewhere") is None


def test_older_copies_are_fetched_again_and_newer_ones_kept(served: ServedBucket, folder: Path) -> None:
    bucket = put(served, "fetch", older=b"new", newer=b"new", absent=b"new", other=b"new")
    for name, ago in (("older", 1000), ("newer", -1000)):
        Path(name).write_bytes(b"old")
        changed = bucket.known[name].modified - ago
        os.utime(name, (changed, changed))
    bucket.fetch(["older", "newer", "absent", "nowhere"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "older": b"new",
        "newer": b"old",
        "absent": b"new",
    }
    assert Path("absent").stat().st_mtime == bucket.known["absent"].modified


def test_large_files_are_left_to_the_jobs(served: ServedBucket, folder: Path) -> None:
    bucket = put(served, "large", weights=b"", small=b"")
    bucket.known["weights"] = type(bucket.known["weights"])(LARGEST_SMALL_FILE + 1, 0.0, "")
    bucket.fetch(["weights", "small"])
    assert [file.name for file in folder.iterdir()] == ["small"]


def test_records_and_notes_are_fetched_and_nothing_else(served: ServedBucket, folder: Path) -> None:
    contents = {
        "results__m__plan.json": b"{}",
        "results__m__merged__model_files.json": b"{}",
        ".snakemake__metadata__eA==": b"{}",
        "results__m__m.gguf": b"GGUF",
    }
    put(served, "records", **contents).fetch_records()
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {"results/m/plan.json", ".snakemake/metadata/eA=="}


def test_notes_are_stored_once(served: ServedBucket, folder: Path) -> None:
    note = folder / ".snakemake/metadata/@long/name"
    note.parent.mkdir(parents=True)
    note.write_text("{}", encoding="utf-8")
    Bucket(served.client, served.name, "notes").store_provenance()
    key = "notes/.snakemake/metadata/@long/name"
    assert served.read(key) == b"{}"
    stored = served.client.head_object(Bucket=served.name, Key=key)["LastModified"]
    served.client.put_object(Bucket=served.name, Key=key, Body=b"{}", Metadata={"marked": "yes"})
    Bucket(served.client, served.name, "notes").store_provenance()
    assert served.client.head_object(Bucket=served.name, Key=key)["Metadata"] == {"marked": "yes"}, stored


def test_patterns_of_the_workflow_that_are_no_objects(served: ServedBucket) -> None:
    bucket = Bucket(served.client, served.name, "patterns")
    bucket.leave_here("results/{model}/gguf/{model}.unquantized.gguf")
    bucket.leave_here("resources/llama.cpp/")
    assert bucket.is_only_here("results/m/gguf/m.unquantized.gguf")
    assert bucket.is_only_here("resources/llama.cpp/1/source/a/b")
    assert not bucket.is_only_here("results/m/gguf/m.unquantized.gguf.json")
    assert not bucket.is_only_here("results/m/gguf/m.Q8_0.gguf")
    assert not bucket.is_only_here("resources/llamaxcpp/1")


def test_a_bucket_that_does_not_exist_yet_is_empty(served: ServedBucket) -> None:
    assert Bucket(served.client, "not-made-yet", "").known == {}


def test_a_server_that_does_not_answer_is_said(served: ServedBucket) -> None:
    class Client:
        def get_paginator(self, name: str) -> None:
            raise ConnectionError("refused")

    with pytest.raises(
        OllamakeError, match=r"the bucket 'weights' .* cannot be listed: refused.*storage-s3-endpoint-url"
    ):
        Bucket(Client(), "weights", "")
