"""Makes a RAG application use a registered model: what its configuration file must say, and the file made to say it."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollamake.create_request import request_of_marker
from ollamake.errors import OllamakeError
from ollamake.hidden_keys import without_keys
from ollamake.ollama_server import OllamaServer
from ollamake.rag_check import KEYS
from ollamake.rag_file import backups_of, keep_backup, read_rag_file, replace_rag_file
from ollamake.registration import marker_differences
from ollamake.yaml_edit import Found, look_up, set_values
from ollamake.yaml_places import Value

log = logging.getLogger("ollamake")

_LOOPBACK = re.compile(r"(?<=://)(localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0|\[::1?\])(?=[:/]|$)")


def read_marker(file: Path) -> dict[str, Any]:
    """Return a registration marker. Raises OllamakeError if there is none."""
    try:
        marker: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        request_of_marker(marker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OllamakeError(
            f"{file}: expected the marker of a registered model ({error!r}). Register it: snakemake registered."
        ) from error
    return marker


def wanted_values(marker: Mapping[str, Any], spec: Mapping[str, Any], text: str) -> dict[str, Value]:
    """Return dotted path -> value for a registered model; of the store there is no host, without num_ctx none.

    ``spec``: file, and optionally keys and use_ollama_fallback. An address that means the same server stays as it stands in
    ``text``.
    """
    values: dict[str, Value] = {
        "use_finetuned": True,
        "use_ollama_fallback": spec.get("use_ollama_fallback", True),
        "ollama_model": marker["name"],
    }
    if marker["target"] == "server":
        values["ollama_host"] = marker["host"]
    num_ctx = marker["request"].get("parameters", {}).get("num_ctx")
    if num_ctx is not None:
        values["num_ctx"] = num_ctx
    keys = spec.get("keys", KEYS)
    wanted = {path: value for name, value in values.items() if (path := keys.get(name)) is not None}
    host = keys.get("ollama_host")
    if host in wanted:
        stands = look_up(text, {host: wanted[host]}, spec["file"])[host].text
        if stands and _address(stands) == _address(str(wanted[host])):
            wanted[host] = stands
    return wanted


def values_found(marker: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Found]:
    """Return dotted path -> what the file says there now."""
    text = read_rag_file(Path(spec["file"])).text
    return look_up(text, wanted_values(marker, spec, text), spec["file"])


def update_rag_file(marker: Mapping[str, Any], spec: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
    """Set the values of a registered model in the file, and return the record of it.

    ``spec`` as in wanted_values, and optionally backup. Where all is as it should be, nothing is written. Raises OllamakeError
    if the file cannot be edited, or if the model is not as its marker says; then nothing is written either.
    """
    name = spec["file"]
    file = read_rag_file(Path(name))
    wanted = wanted_values(marker, spec, file.text)
    found = look_up(file.text, wanted, name)
    content = file.encoded(set_values(file.text, wanted, name))
    changes = content != file.content
    if marker["target"] == "store" and spec.get("keys", KEYS).get("ollama_host"):
        log.info(
            "%s: %s stays as it is: the model is in the store %s, which has no address before a server is started on it",
            *(name, spec.get("keys", KEYS)["ollama_host"], marker["store"]),
        )
    backup = None
    if changes:
        for path, value in wanted.items():
            if not found[path].as_wanted:
                log.info(
                    "%s: %s: %s -> %s",
                    name,
                    path,
                    without_keys(found[path].source or "(nothing)"),
                    json.dumps(value, ensure_ascii=False),
                )
        log.info("%s", shown_difference(file.content, content, name))
        if not dry_run:
            _require_as_registered(marker, name)
            backup = keep_backup(file) if spec.get("backup", True) else None
            replace_rag_file(file, content)
            log.info("%s: written%s", name, f"; before: {backup}" if backup else "")
    else:
        log.info("%s says all of %s already; nothing is written", name, marker["name"])
    place = "host" if marker["target"] == "server" else "store"
    return {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "values": wanted,
        "before": {path: one.source and without_keys(one.source) for path, one in found.items()},
        "written": changes,
        "backup": None if backup is None else str(backup),
        "backups": [one.name for one in backups_of(file.path)],
        "model": {key: marker[key] for key in ("name", "target", place, "manifest_digest")},
    }


def shown_difference(before: bytes, after: bytes, name: str) -> str:
    """Return a unified difference for people, without line ends, and without the keys that stand in the same lines."""
    lines = [content.decode("utf-8").splitlines() for content in (before, after)]
    return without_keys("\n".join(difflib.unified_diff(*lines, name, f"{name} (with the model)", lineterm="", n=1)))


def _require_as_registered(marker: Mapping[str, Any], name: str) -> None:
    """Look at the model as scripts/verify.py does: every blob."""
    try:
        differences = marker_differences(marker, *request_of_marker(dict(marker)))
    except OllamakeError as error:
        raise OllamakeError(f"{error} Nothing has been written to {name}.") from error
    if differences:
        raise OllamakeError(
            f"{marker['name']} is not as it was registered, so nothing has been written to {name}:\n  "
            + "\n  ".join(differences)
            + "\nRegister it again: snakemake registered."
        )


def _address(host: str) -> str | None:
    """Return one spelling of a server's address; None if it is none. All names of this machine for itself are one."""
    try:
        return _LOOPBACK.sub("127.0.0.1", OllamaServer(host).address)
    except OllamakeError:
        return None
