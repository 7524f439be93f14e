"""Of which files a model's quality was measured: figures can be compared only if fine-tune and text are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollamake.errors import OllamakeError

_SHARED = {
    "reference_sha256": "another unquantized GGUF",
    "text_sha256": "another text",
    "context": "another context",
    "chunks": "another number of chunks",
}


def gathered(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all records of evaluate_quality share, and the sha256 of each GGUF that was measured.

    ``records``: file -> record, at least one. Raises OllamakeError naming two files that were not measured alike.
    """
    (first, one), *others = records.items()
    for file, other in others:
        for key, what in _SHARED.items():
            if other[key] != one[key]:
                raise OllamakeError(
                    f"{file} was measured with {what} than {first} ({key} {other[key]}, not {one[key]}), so the two cannot be"
                    " compared. Remove both and run the workflow again."
                )
    measured = {record["measured"]: record["gguf_sha256"] for record in records.values()}
    return {key: one[key] for key in _SHARED} | {"measured": measured}
