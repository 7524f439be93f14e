"""What is below a prefix of a bucket of S3, known from one listing, and the small files of it that are fetched here.

Paths are those of the workflow, relative to the working directory: results/m/plan.json is the object PREFIX/results/m/plan.json.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamake.atomic_write import temporary_beside
from ollamake.errors import OllamakeError

LARGEST_SMALL_FILE = 100 << 20
"""Bytes: what is larger is fetched by the job that reads it only. The largest tokenizers have 35 MB."""

MODEL_FILES = "model_files.json"
"""Names the files beside the weights of a merged checkpoint, which no rule can name: they go and come with it."""

PROVENANCE = ".snakemake/metadata"
"""Where Snakemake notes what each output was made with, by which it knows that a parameter or code has changed."""


@dataclass(frozen=True)
class Known:
    """What a listing of the bucket says of an object."""

    size: int
    modified: float
    """Seconds since 1970, by the clock of the bucket."""
    etag: str
    """Changes with the content; of an object that was uploaded in one part it is its MD5."""


class Bucket:
    """What is below a prefix of a bucket, as one listing has it: a request for each thousand objects."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client, self._bucket = client, bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.known: dict[str, Known] = {}
        self.only_here: list[re.Pattern[str]] = []
        try:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=self.prefix)
            for entry in (entry for page in pages for entry in page.get("Contents", ())):
                path = entry["Key"].removeprefix(self.prefix)
                self.known[path] = Known(entry["Size"], entry["LastModified"].timestamp(), entry["ETag"].strip('"'))
        except Exception as error:  # botocore's own have no base but Exception
            if _code(error) != "NoSuchBucket":
                raise OllamakeError(
                    f"the bucket {bucket!r} of --default-storage-prefix cannot be listed: {error}. Expected are an address in"
                    " storage-s3-endpoint-url (none for AWS) and credentials in SNAKEMAKE_STORAGE_S3_ACCESS_KEY and"
                    " SNAKEMAKE_STORAGE_S3_SECRET_KEY, or where boto3 finds them. See profiles/s3."
                ) from error

    def __contains__(self, path: str) -> bool:
        return path in self.known

    def names_in(self, folder: str) -> frozenset[str]:
        """Return the names of the objects directly in a folder."""
        start = f"{folder}/"
        return frozenset(
            path.removeprefix(start) for path in self.known if path.startswith(start) and "/" not in path[len(start) :]
        )

    def query(self, path: str) -> str:
        """Return what Snakemake calls the object of a path."""
        return f"s3://{self._bucket}/{self.prefix}{path}"

    def identity(self, path: str) -> str | None:
        """Return a text that changes with the content of an object; None if there is none."""
        known = self.known.get(path)
        return known and f"{known.size} bytes, ETag {known.etag}"

    def leave_here(self, pattern: str) -> None:
        """Let the files of a pattern of the workflow, or below a folder, be no objects: they are of one machine."""
        expression = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern))
        self.only_here.append(re.compile(expression if pattern.endswith("/") else rf"{expression}\Z"))

    def is_only_here(self, path: str) -> bool:
        """Return whether a file is no object."""
        return any(pattern.match(path) for pattern in self.only_here)

    def fetch_records(self) -> None:
        """Fetch the records and Snakemake's notes of earlier runs, here or elsewhere, which say what needs to be done."""
        records = [
            path
            for path in self.known
            if path.startswith("results/") and path.endswith(".json") and Path(path).name != MODEL_FILES
        ]
        self.fetch(records + [path for path in self.known if path.startswith(f"{PROVENANCE}/")])

    def store_provenance(self) -> None:
        """Store what Snakemake has noted of this run, for runs in other working directories."""
        notes = [str(path) for path in Path(PROVENANCE).rglob("*") if path.is_file()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._store, [path for path in notes if not self._has_content_of(path)]))

    def fetch(self, paths: Iterable[str]) -> None:
        """Fetch small files of which there is no copy, or an older one. Raises OllamakeError."""
        wanted = [
            path
            for path in paths
            if path in self.known and self.known[path].size <= LARGEST_SMALL_FILE and not self._is_current(path)
        ]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._fetch, wanted))

    def _is_current(self, path: str) -> bool:
        if not Path(path).is_file():
            return False
        return Path(path).stat().st_mtime >= self.known[path].modified or self._has_content_of(path)

    def _has_content_of(self, path: str) -> bool:
        """Whether the bucket has a small file as it is here."""
        known = self.known.get(path)
        return (
            known is not None and known.etag == hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
        )

    def _fetch(self, path: str) -> None:
        try:
            with temporary_beside(Path(path)) as temporary:
                self._client.download_file(self._bucket, self.prefix + path, str(temporary))
                os.utime(temporary, (self.known[path].modified,) * 2)
        except Exception as error:
            raise OllamakeError(f"{self.query(path)} cannot be fetched: {error}") from error

    def _store(self, path: str) -> None:
        try:
            self._client.upload_file(path, self._bucket, self.prefix + path)
        except Exception as error:
            raise OllamakeError(f"{self.query(path)} cannot be stored: {error}") from error


def _code(error: Exception) -> str | None:
    """Return what S3 calls an error."""
    answer = getattr(error, "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
