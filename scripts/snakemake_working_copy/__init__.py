"""A working directory that is the local copy of a bucket: results/m/plan.json is s3://BUCKET/PREFIX/results/m/plan.json.

With `--default-storage-provider s3` Snakemake takes each input and output for an object and keeps its copy below
.snakemake/storage. Then a path in params, a file that is read beside another, and a record that is read when the workflow is
read are looked for where nothing is. Here the copy has the path that the workflow names, whatever storage there is. What of
the bucket is read before any job (records, configs, tokenizers) is fetched when the workflow is read; weights are fetched by
Snakemake for the jobs that read them, and until then known by what the bucket says of them.

Made for snakemake-storage-plugin-s3 0.3; profiles/s3 says how it is used, rules/common.smk uses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.dag import DAG
from snakemake.io import flag, get_flag_value, is_flagged
from snakemake.path_modifier import PATH_MODIFIER_FLAG
from snakemake.path_modifier import PathModifier as PathModifierOfSnakemake
from snakemake_interface_storage_plugins.io import IOCacheStorageInterface, Mtime
from snakemake_storage_plugin_s3 import StorageObject as ObjectOfS3
from snakemake_storage_plugin_s3 import StorageProvider as ProviderOfS3

from ollamake.atomic_write import temporary_beside
from ollamake.errors import OllamakeError

LARGEST_SMALL_FILE = 100 << 20
"""Bytes: what is larger is fetched by the job that reads it only. The largest tokenizers have 35 MB."""

PROVENANCE = ".snakemake/metadata"
"""Where Snakemake notes what each output was made with, by which it knows that a parameter or code has changed."""

MODEL_FILES = "model_files.json"
"""Names the files beside the weights of a merged checkpoint, which no rule can name: they go and come with it."""


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
        """Let the files of a pattern of the workflow be no objects: they are made, used and removed on one machine."""
        self.only_here.append(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern))))

    def is_only_here(self, path: str) -> bool:
        """Return whether a file is no object."""
        return any(pattern.match(path) for pattern in self.only_here)

    def fetch_records(self) -> None:
        """Fetch the records and Snakemake's notes of earlier runs, here or elsewhere, which say what needs to be done."""
        records = [path for path in self.known if path.startswith("results/") and path.endswith(".json")]
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
        return known is not None and known.etag == hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()

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


class StorageProvider(ProviderOfS3):  # type: ignore[misc]
    """The plugin's provider, with objects whose copies have the workflow's own paths."""

    bucket: Bucket


class StorageObject(ObjectOfS3):  # type: ignore[misc]
    """An object whose copy has the workflow's own path."""

    def _local_suffix_from_key(self, key: str) -> str:
        return key.removeprefix(self.provider.bucket.prefix)

    def get_inventory_parent(self) -> str:
        return self.cache_key(f"s3://{self.bucket}")

    async def inventory(self, cache: IOCacheStorageInterface) -> None:
        """Tell Snakemake of all objects at once, from the listing that there is already."""
        parent = self.get_inventory_parent()
        if parent in cache.exists_in_storage:
            return
        cache.exists_in_storage[parent] = True
        for path, known in self.provider.bucket.known.items():
            key = self.cache_key(path)
            cache.mtime[key] = Mtime(storage=known.modified)
            cache.size[key] = known.size
            cache.exists_in_storage[key] = True

    def _is_only_here(self) -> bool:
        return bool(self.provider.bucket.is_only_here(self.local_suffix()))

    def exists(self) -> bool:
        return self.local_path().exists() if self._is_only_here() else super().exists()

    def mtime(self) -> float:
        return self.local_path().stat().st_mtime if self._is_only_here() else super().mtime()

    def size(self) -> int:
        """Return the size of the copy, which ensure() asks for before the object is there; without a copy the object's."""
        return self.local_path().stat().st_size if self.local_path().is_file() else super().size()

    def retrieve_object(self) -> None:
        if self._is_only_here():
            return
        with temporary_beside(self.local_path()) as temporary:
            self.s3obj().download_file(str(temporary))
        for path, key in self._beside():
            self.provider.s3c.meta.client.download_file(self.bucket, key, str(path))

    def store_object(self) -> None:
        if self._is_only_here():
            return
        for path, key in self._beside():
            self.provider.s3c.meta.client.upload_file(str(path), self.bucket, key)
        super().store_object()

    def remove(self) -> None:
        """Remove object and copy. The plugin's own also removes a bucket with nothing left in it."""
        self.local_path().unlink(missing_ok=True)
        if not self._is_only_here():
            self.s3obj().delete()

    def _beside(self) -> list[tuple[Path, str]]:
        """Return path and key of the files that go with this one."""
        path = self.local_path()
        if path.name != MODEL_FILES:
            return []
        names = json.loads(path.read_text(encoding="utf-8"))["files"]
        return [(path.parent / name, f"{Path(self.key).parent}/{name}") for name in names]


class PathModifier(PathModifierOfSnakemake):  # type: ignore[misc]
    """What makes objects of the paths of a workflow.

    Snakemake's own takes a path for no object if that of its copy is the same.
    """

    def modify(self, path: Any, property: str | None = None) -> Any:
        if get_flag_value(path, PATH_MODIFIER_FLAG) or get_flag_value(path, "local"):
            return path
        modified = self.apply_default_storage(self.replace_prefix(path, property))
        return flag(modified, PATH_MODIFIER_FLAG) if is_flagged(modified, "storage_object") else modified


async def _keep_copies(dag: DAG) -> None:
    """Leave the copies of outputs that will be made again.

    Snakemake removes them when it has looked what is to be done, also in a dry run; then it remembers them as being there,
    and ends because it cannot write them (9.27.1, in a workflow with checkpoints).
    """


def working_copy(workflow: Any) -> Bucket:
    """Let the working directory be the copy of a workflow's default storage, and return what is there.

    Raises OllamakeError if it is another than S3, or does not answer.
    """
    provider = workflow.storage_registry.default_storage_provider
    prefix = workflow.storage_settings.default_storage_prefix or ""
    if type(provider) is not ProviderOfS3:
        raise OllamakeError("--default-storage-provider: only s3 can hold the files of this workflow. See profiles/s3.")
    name, _, inner = prefix.removeprefix("s3://").partition("/")
    if not prefix.startswith("s3://") or not name:
        raise OllamakeError(f"--default-storage-prefix: expected s3://BUCKET or s3://BUCKET/PREFIX, found {prefix!r}.")
    provider.__class__ = StorageProvider
    provider.bucket = Bucket(provider.s3c.meta.client, name, inner.strip("/"))
    # Nothing goes from the working directory because a job is done with it.
    provider.local_prefix, provider.keep_local = Path(), True
    workflow.modifier.path_modifier.__class__ = PathModifier
    DAG.sanitize_local_storage_copies = _keep_copies
    provider.bucket.fetch_records()
    return provider.bucket


def _code(error: Exception) -> str | None:
    """Return what S3 calls an error."""
    answer = getattr(error, "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
