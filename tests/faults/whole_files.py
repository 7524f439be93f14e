"""Whether a file under its final name is whole, by its format alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from gguf import GGUFReader
from safetensors import safe_open

from ollamake.file_digest import sha256_of
from ollamake.record_seal import Seal, read_sealed_text, seal_of

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_HIDDEN_TEMPORARY = re.compile(r"\..+\.tmp")
_STORE_TEMPORARY = re.compile(r"sha256-\d{1,24}")
"""What Ollama itself gives its temporary files in blobs/, and sweeps."""


def is_final(path: Path) -> bool:
    """Whether a name is one under which a file is taken for whole."""
    return not _HIDDEN_TEMPORARY.fullmatch(path.name) and not (
        path.parent.name == "blobs" and _STORE_TEMPORARY.fullmatch(path.name)
    )


def fault_of(path: Path) -> str | None:
    """Return what is not whole about a file, or None. FileNotFoundError: it has gone meanwhile."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(path)
    content = path.read_bytes()
    if blob := _BLOB.fullmatch(path.name):
        return None if sha256_of(path) == blob[1] else "other bytes than its name says"
    if path.name.endswith(".released"):
        return "not empty" if content else None
    if not content:
        return "empty"
    try:
        _parse(path, content)
    except FileNotFoundError:
        raise
    except Exception as error:  # Whatever a reader says of half a file.
        return f"{type(error).__name__}: {error}"
    return None


def _parse(path: Path, content: bytes) -> None:
    """Read a file to its end. Raises whatever its reader raises."""
    assert seal_of(content, path.suffix) is not Seal.BROKEN, "it is not what its seal says"
    if path.suffix == ".gguf":
        # Maps each tensor: one that ends outside of the file is a ValueError.
        for tensor in GGUFReader(path).tensors:
            assert tensor.data_offset + tensor.n_bytes <= len(content), f"{tensor.name} ends outside of the file"
    elif path.suffix == ".safetensors":
        # Refuses a file that is longer or shorter than its header says.
        with safe_open(path, "np"):
            pass
    elif path.suffix == ".json" or "manifests" in path.parts:
        json.loads(content)
    elif path.suffix in (".yaml", ".yml"):
        assert yaml.safe_load(content) is not None
        assert content.endswith(b"\n"), "its last line does not end"
    elif path.suffix in (".html", ".svg"):
        assert read_sealed_text(path).rstrip().endswith(f"</{path.suffix[1:]}>"), "it does not end as it should"
    elif path.suffix in (".md", ".txt") or path.name == "Modelfile":
        content.decode("utf-8")
        assert path.suffix == ".txt" or content.endswith(b"\n"), "its last line does not end"
