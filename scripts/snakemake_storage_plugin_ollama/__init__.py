"""Registered models as Snakemake sees them: an output that exists as long as Ollama holds what its marker says.

The query of a model is `ollama://` and the path of its marker, `ollama://results/m/ollama/Q4_K_M/registered.json`. A model
that was deleted, renamed or replaced is a missing output, so the next run plans its registration and nothing else. What the
server says counts as existence alone: the time is the marker's, since clocks of servers differ. Snakemake removes outputs
before it makes them again and when a job fails; a registered model is not removed by that.

Interface: snakemake-interface-storage-plugins 4. rules/common.smk registers this module by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from snakemake_interface_storage_plugins.io import IOCacheStorageInterface
from snakemake_interface_storage_plugins.storage_object import (
    StorageObjectRead,
    StorageObjectTouch,
    StorageObjectWrite,
)
from snakemake_interface_storage_plugins.storage_provider import (
    ExampleQuery,
    QueryType,
    StorageProviderBase,
    StorageQueryValidationResult,
)

from ollamake.drift import KnownRegistrations
from ollamake.ollama_server import ServerUnreachable

SCHEME = "ollama://"


class StorageProvider(StorageProviderBase):
    """What the models of one run share: each server's answer, and whether its silence has been reported."""

    unreachable: Callable[[ServerUnreachable], bool]
    """Told of a server that does not answer; returns whether its models are to be registered. Set by rules/common.smk."""

    def __post_init__(self) -> None:
        self.registrations = KnownRegistrations()
        self.reported: set[str] = set()

    def drifted(self, marker: Path) -> bool:
        """Whether a model is no longer what its marker says; what has happened is said once."""
        try:
            drift = self.registrations.drift(marker)
        except ServerUnreachable as error:
            return type(self).unreachable(error)
        if drift is not None and drift not in self.reported:
            self.reported.add(drift)
            self.logger.info(f"{drift}: it is registered again")
        return drift is not None

    @classmethod
    def example_queries(cls) -> list[ExampleQuery]:
        return [
            ExampleQuery(f"{SCHEME}results/m/ollama/Q4_K_M/registered.json", "the model of that marker", QueryType.ANY)
        ]

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        valid = query.startswith(SCHEME)
        return StorageQueryValidationResult(
            query, valid, "" if valid else f"expected {SCHEME} and the path of a marker"
        )

    def use_rate_limiter(self) -> bool:
        return False

    def default_max_requests_per_second(self) -> float:
        return 0.0

    def rate_limiter_key(self, query: str, operation: Any) -> Any:
        return None


class StorageObject(StorageObjectRead, StorageObjectWrite, StorageObjectTouch):
    """One registered model."""

    def __post_init__(self) -> None:
        self.marker = Path(self.query.removeprefix(SCHEME))

    def local_suffix(self) -> str:
        return self.query.removeprefix(SCHEME)

    def exists(self) -> bool:
        return self.marker.exists() and not self.provider.drifted(self.marker)

    def mtime(self) -> float:
        return self.marker.stat().st_mtime

    def size(self) -> int:
        return 0

    def retrieve_object(self) -> None:
        self.local_path().touch()

    def store_object(self) -> None:
        """Believe the marker that was just written: the job has verified it."""
        self.provider.registrations.believe(self.marker)

    def remove(self) -> None:
        """Leave the model where it is; `ollama rm` removes it."""

    def touch(self) -> None:
        """Leave the model as it is: its time is the marker's."""

    async def inventory(self, cache: IOCacheStorageInterface) -> None:
        """Look at each model when it is asked for: all of them together cost one request."""

    def get_inventory_parent(self) -> str | None:
        return None

    def cleanup(self) -> None:
        """Nothing is left behind."""

    def list_candidate_matches(self) -> Iterable[str]:
        return ()
