"""The weights of a model that Ollama has already: a blob, found where its server or a store keeps it."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from ollamake.errors import OllamakeError
from ollamake.gguf_record import gguf_record
from ollamake.ollama_server import NoSuchModel
from ollamake.ollama_store import OllamaStore
from ollamake.registration import Place

log = logging.getLogger("ollamake")

_SAME = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Two names of one type (QUANT_OPTIONS in llama.cpp's tools/quantize/quantize.cpp)."""


@dataclass(frozen=True)
class OllamaWeights:
    """A GGUF that Ollama keeps, and the sha256 (hexadecimal) under which it does."""

    blob: Path
    sha256: str
    where: str
    """The server's address or the store's folder."""


def find_weights(name: str, place: Place, key: str) -> OllamaWeights:
    """Return the weights of the model ``name`` in Ollama; nothing is read of them.

    On a server the blob must lie on this machine and be readable. Without one, looked at are the store of ``place`` and the
    folder of this user's Ollama (OLLAMA_MODELS, else ~/.ollama/models). Raises OllamakeError, naming ``key``.
    """
    server = place.server()
    if server is None:
        return _in_stores(name, [Path(place.store), _own_folder()], key)
    try:
        shown = server.show(name)
    except NoSuchModel as error:
        raise OllamakeError(
            f"{key}: expected a model of the Ollama server at {server.address}, found none of the name {name!r} ({error})."
            f" Fetch it (`ollama pull {name}`), or leave {key} out: the base is converted and quantized then."
        ) from error
    if shown.adapter is not None:
        _refuse_adapter(name, key)
    if shown.weights is None or shown.weights_path is None:
        raise OllamakeError(
            f"{key}: {server.address} has no weights of {name} that could be used; it is no local model."
        )
    blob = Path(shown.weights_path)
    if not os.access(blob, os.R_OK):
        raise OllamakeError(
            f"{key}: expected to read the weights of {name}, found that {blob} is not here or not for {_user()} to read. The"
            f" server at {server.address} says that they lie there: run ollamake on its machine, as a user who may read them (on"
            f" Linux often a member of the group `ollama`), or leave {key} out."
        )
    return OllamaWeights(blob, shown.weights, server.address)


def weights_record(found: OllamaWeights, source: str, name: str, kind: str, key: str) -> dict[str, Any]:
    """Return the record of weights in Ollama under the ``name`` that they get here; all of them are read for the sha256.

    ``source`` is the model's name there, ``kind`` the type that it is expected to be of. Raises OllamakeError, naming ``key``,
    if it is of another, and if the blob is damaged.
    """
    record = gguf_record(found.blob, name, kind, f"Ollama's blob is damaged; fetch {source} again")
    known = _type_of(record["file_type"])
    if known != _SAME.get(kind, kind):
        raise OllamakeError(
            f"{key}: expected {kind}, which is in `quantizations`, found that {source} is {known}. Set quantizations: [{known}],"
            f" or name a model that is {kind}."
        )
    if record["sha256"] != found.sha256:
        raise OllamakeError(
            f"{key}: the blob {found.blob} of {source} has other bytes than its name says (sha256 {record['sha256']}): it is"
            f" damaged. Fetch the model again: ollama rm {source}, ollama pull {source}."
        )
    return record


def _in_stores(name: str, folders: list[Path], key: str) -> OllamaWeights:
    stores = [store for store in map(OllamaStore, folders) if store.manifest_file(name).is_file()]
    if not stores:
        looked = " and ".join(str(folder) for folder in folders)
        raise OllamakeError(
            f"{key}: expected a model of Ollama, found none of the name {name!r}: no server was asked, and it is not in {looked}."
            f" Start a server that has it, name its folder in OLLAMA_MODELS, or leave {key} out: the base is converted and"
            " quantized then."
        )
    store = stores[0]
    try:
        digests = {layer["mediaType"].rpartition(".")[2]: layer["digest"] for layer in store.read(name)["layers"]}
        digest = digests.get("model", "").removeprefix("sha256:")
    except (OllamakeError, KeyError, TypeError, AttributeError) as error:
        raise OllamakeError(
            f"{key}: the manifest of {name} in {store.folder} is damaged ({error}). Fetch the model again: ollama pull {name}."
        ) from error
    if "adapter" in digests:
        _refuse_adapter(name, key)
    blob = store.blob_file(digest)
    if not digest or not os.access(blob, os.R_OK):
        raise OllamakeError(f"{key}: the weights of {name} ({blob}) are not there or not for {_user()} to read.")
    log.info("%s is in %s", name, store.folder)
    return OllamaWeights(blob, digest, str(store.folder))


def _type_of(number: int | None) -> str:
    """Return the name of a GGUF's general.file_type."""
    if number not in set(LlamaFileType):
        return f"of no known type (general.file_type {number})"
    return re.sub("^(MOSTLY|ALL)_", "", LlamaFileType(number).name)


def _own_folder() -> Path:
    """Return where this user's Ollama keeps its models (envconfig/config.go)."""
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def _refuse_adapter(name: str, key: str) -> None:
    raise OllamakeError(
        f"{key}: expected a model without an adapter, found that {name} has one; Ollama takes one for a model. Name the model"
        " that it was made from."
    )


def _user() -> str:
    return f"the user {os.geteuid()}"
