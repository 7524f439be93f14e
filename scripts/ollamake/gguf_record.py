"""What stands beside every GGUF: size, sha256, type, tensors and tokenizer, so that later rules need not read it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.gguf_header import read_gguf_header
from ollamake.gguf_tokenizer import KEYS, tokenizer_facts
from ollamake.progress import progress_bar
from ollamake.quantization_types import QUANTIZATION_TYPES

_ARCHITECTURE, _FILE_TYPE = "general.architecture", "general.file_type"

TOKENIZER_BYTES = 10_000_000
"""Allowance for a GGUF's metadata: 6-8.5 MB for vocabularies of 128 k to 262 k tokens."""


def gguf_record(
    path: Path, name: str, kind: str, reason: str = "it was just written, so the disk may be full"
) -> dict[str, Any]:
    """Read a GGUF, check that it is whole, and return its record.

    ``name`` is the name it will have, ``kind`` its type, ``reason`` why it may not be whole. Raises OllamakeError if the
    header does not parse or a tensor lies outside the file. The tensors themselves are read once, for the sha256.
    """
    size = path.stat().st_size
    try:
        header = read_gguf_header(path, (_ARCHITECTURE, _FILE_TYPE, *KEYS))
        architecture = header.values[_ARCHITECTURE]
        file_type = header.values.get(_FILE_TYPE)
        tokenizer = tokenizer_facts(header.values)
        tensors = header.tensors
        if not isinstance(architecture, str) or type(file_type) not in (int, type(None)):
            raise ValueError(f"{_ARCHITECTURE} is {str(architecture)[:80]!r}, {_FILE_TYPE} {str(file_type)[:80]!r}")
        if not sum(tensor.elements for tensor in tensors):
            raise ValueError("it has no weights")
        end = max(tensor.begin + tensor.size for tensor in tensors)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise OllamakeError(f"{path} is not a whole GGUF ({error}); {reason}.") from error
    if end > size:
        raise OllamakeError(f"{path} ends after {size} bytes, but its tensors need {end}; {reason}.")
    parameters = sum(tensor.elements for tensor in tensors)
    with progress_bar(size, "sha256") as progress:
        digest = sha256_of(path, progress.update)
    return {
        "file": name,
        "type": kind,
        "size": size,
        "sha256": digest,
        "architecture": architecture,
        "file_type": file_type,
        "tokenizer": tokenizer,
        "tensors": len(tensors),
        "parameters": parameters,
        "bits_per_weight": round(8 * size / parameters, 3),
    }


def importance_of(file: Path, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    """Return what the record of a quantization says of the importance matrix it is made with: its sha256 and chunks.

    ``file`` is the matrix's record, ``source`` that of the unquantized GGUF. Raises OllamakeError if the matrix is of another
    GGUF, or the type makes no use of one.
    """
    matrix = json.loads(file.read_text(encoding="utf-8"))
    if not QUANTIZATION_TYPES[kind].uses_imatrix:
        raise OllamakeError(
            f"{file}: llama-quantize makes no use of an importance matrix for {kind}; leave --imatrix out."
        )
    if matrix["source_sha256"] != source["sha256"]:
        raise OllamakeError(
            f"{file}: expected an importance matrix of the GGUF with sha256 {source['sha256']}, found one of"
            f" {matrix['source_sha256']}. Run Snakemake again to have the matrix made anew."
        )
    return {"imatrix": {"sha256": matrix["sha256"], "chunks": matrix["chunks"]}}


def estimated_size(source: dict[str, Any], kind: str) -> int:
    """Return about how many bytes a GGUF of type ``kind`` will take, from the record of the unquantized one."""
    return round(source["parameters"] * QUANTIZATION_TYPES[kind].bits_per_weight / 8) + TOKENIZER_BYTES
