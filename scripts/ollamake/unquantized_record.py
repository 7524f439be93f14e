"""The record of a model's unquantized GGUF, which outlives the GGUF: it is made again for one more job, and is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.record_seal import read_record


def unquantized_record(conversion: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """Return the record: what was converted, and ``spec``, what it was converted from beside files that jobs make."""
    return {**conversion, "spec": spec}


def require_the_same(conversion: Path, record: Path) -> None:
    """Raise OllamakeError if what was converted last is not what the record says, by sha256."""
    converted, recorded = (read_record(file)["sha256"] for file in (conversion, record))
    if converted != recorded:
        raise OllamakeError(
            f"{conversion}: expected the unquantized GGUF that {record} tells of, with sha256 {recorded}; found one with"
            f" {converted}. It was made again from the same files with the same code, so one of these was not what it"
            f" seemed. Remove {record} and run the workflow again: all that is made of it is then made anew."
        )


def require_gguf(gguf: Path) -> None:
    """Raise OllamakeError if an unquantized GGUF is not there: it goes, unless keep.unquantized is true."""
    if not gguf.exists():
        raise OllamakeError(
            f"{gguf} is not here. With keep.unquantized: false it is made again for a stage of the workflow, not for every"
            " single file: run `snakemake --cores 1 all`, or `gguf`, or `quality`."
        )
