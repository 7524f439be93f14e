"""A working directory that is the local copy of a bucket: results/m/plan.json is s3://BUCKET/PREFIX/results/m/plan.json.

With `--default-storage-provider s3` Snakemake takes each input and output for an object and keeps its copy below
.snakemake/storage. Then a path in params, a file that is read beside another, and a record that is read when the workflow is
read are looked for where nothing is. Here the copy has the path that the workflow names, whatever storage there is. What of
the bucket is read before any job (records, configs, tokenizers) is fetched when the workflow is read; weights are fetched by
Snakemake for the jobs that read them, and until then known by what the bucket says of them.

Made for snakemake-storage-plugin-s3 0.3; profiles/s3 says how it is used, rules/common.smk uses it.
"""

from __future__ import annotations

import json
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
from ollamake.bucket import MODEL_FILES, Bucket
from ollamake.errors import OllamakeError


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
