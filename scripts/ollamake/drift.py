"""Whether what a marker says is registered still is, as far as one look at each server tells.

A server is asked once for the list of its models, whatever their number; a store's manifests are read. Anything deeper is
verification's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ollamake.errors import OllamakeError
from ollamake.ollama_name import manifest_path
from ollamake.ollama_server import OllamaServer, ServerUnreachable
from ollamake.ollama_store import OllamaStore

_Digests = dict[tuple[str, str, str, str], str]


class KnownRegistrations:
    """What servers and stores hold, each server's list fetched when it is first needed."""

    def __init__(self) -> None:
        self._lists: dict[str, _Digests | ServerUnreachable] = {}
        self._believed: set[Path] = set()

    def drift(self, marker_file: Path) -> str | None:
        """Return in what way a registration has changed since its marker was written, or None.

        Raises ServerUnreachable if its server does not answer; it is not asked again.
        """
        if marker_file in self._believed:
            return None
        try:
            marker = json.loads(marker_file.read_text(encoding="utf-8"))
            name, registered = marker["name"], marker["manifest_digest"]
            held = (
                self._store(marker)
                if marker["target"] == "store"
                else self._server(marker["host"]).get(manifest_path(name))
            )
        except ServerUnreachable:
            raise
        except (OllamakeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"its marker {marker_file} cannot be read ({error})"
        where = marker.get("host") or marker["store"]
        if held is None:
            return f"{name} is no longer in {where}"
        if held != registered:
            return f"{name} in {where} is another model than the one that was registered"
        return None

    def believe(self, marker_file: Path) -> None:
        """Take a marker for true from now on: it was written by a registration of this run, which has checked more."""
        self._believed.add(marker_file)

    def _server(self, address: str) -> _Digests:
        if address not in self._lists:
            try:
                self._lists[address] = OllamaServer(address).digests(once=True)
            except ServerUnreachable as error:
                self._lists[address] = error
        held = self._lists[address]
        if isinstance(held, ServerUnreachable):
            raise held
        return held

    def _store(self, marker: dict[str, str]) -> str | None:
        """Return the digest of a manifest in a store whose blobs are all there, else None."""
        store = OllamaStore(Path(marker["store"]))
        try:
            content = store.manifest_file(marker["name"]).read_bytes()
            manifest = store.read(marker["name"])
            layers = [*manifest["layers"], manifest["config"]]
            whole = all(store.has_blob(layer["digest"], layer["size"]) for layer in layers)
        except (OSError, OllamakeError):
            return None
        return hashlib.sha256(content).hexdigest() if whole else None
