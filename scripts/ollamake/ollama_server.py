"""A running Ollama, through its client package and JSON API."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama

from ollamake.errors import OllamakeError
from ollamake.file_digest import CHUNK
from ollamake.ollama_name import manifest_path
from ollamake.progress import progress_bar

log = logging.getLogger("ollamake")

_CONNECT_SECONDS = 5.0
_TRIES = 4
_FIRST_PAUSE = 0.5
"""Seconds; doubled after each try."""

_PASSING = (httpx.TransportError, ConnectionError)


@dataclass(frozen=True)
class ShownModel:
    """What a server says of a model: as POST /api/show and GET /api/tags give it."""

    model_digest: str | None
    """sha256 of the weights, from the FROM line of the Modelfile it shows."""
    manifest_digest: str | None
    system: str
    template: str
    parameters: dict[str, list[str]]


class OllamaServer:
    """One server. Every method raises OllamakeError naming its address when it cannot be reached or refuses."""

    def __init__(self, host: str | None) -> None:
        # Reading and writing have no bound: a create of 60 GB is silent for minutes.
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        try:
            self._client = ollama.Client(host=host, timeout=timeout)
        except ValueError as error:
            raise OllamakeError(f"ollama.host: {host!r} is not an address ({error})") from error
        self._http: httpx.Client = self._client._client

    @property
    def address(self) -> str:
        """The server's URL."""
        return str(self._http.base_url).rstrip("/")

    def version(self) -> str:
        """Return the server's version, asking once and briefly: is it there?"""
        try:
            answer = self._http.get("/api/version", timeout=_CONNECT_SECONDS)
            answer.raise_for_status()
            return str(answer.json()["version"])
        except (*_PASSING, httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            raise OllamakeError(
                f"no Ollama server answers at {self.address} ({error or type(error).__name__}). Start it (`ollama serve`),"
                " set ollama.host or OLLAMA_HOST to its address, or set ollama.target to store."
            ) from error

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds the blob of this sha256 (hexadecimal)."""
        answer = self._request("HEAD", f"/api/blobs/sha256:{digest}", accept=(200, 404))
        return answer.status_code == 200

    def upload_blob(self, path: Path, digest: str) -> None:
        """Send a file as a blob, a chunk at a time. The server checks it against ``digest``."""

        def attempt() -> httpx.Response:
            with progress_bar(path.stat().st_size, f"uploading {path.name}") as progress:
                headers = {"Content-Length": str(path.stat().st_size)}
                body = _chunks(path, progress.update)
                return self._http.post(f"/api/blobs/sha256:{digest}", content=body, headers=headers)

        self._retried(attempt, f"upload of {path.name}", accept=(200, 201))

    def create(self, body: dict[str, Any]) -> None:
        """Create a model; ``body`` as CreateRequest.as_api gives it. Waits until the server is done."""
        # Not streamed: a client that drops out of a stream leaves the server's create hanging for ever.
        answer = self._request("POST", "/api/create", json=body)
        status = answer.json().get("status")
        if status != "success":
            raise OllamakeError(
                f"{self.address} did not create {body['model']}: it says {status!r}, expected 'success'"
            )

    def show(self, name: str) -> ShownModel:
        """Return what the server has under ``name``. Raises OllamakeError if it has nothing."""
        shown = self._request("POST", "/api/show", json={"model": name}).json()
        blob = re.search(r"^FROM .*sha256-([0-9a-f]{64})\s*$", shown.get("modelfile", ""), re.MULTILINE)
        return ShownModel(
            model_digest=blob[1] if blob else None,
            manifest_digest=self._manifest_digest(name),
            system=shown.get("system", ""),
            template=shown.get("template", ""),
            parameters=_parameters(shown.get("parameters", "")),
        )

    def unload(self, name: str) -> None:
        """Let a loaded model go, so that the next question is answered by what is registered now."""
        self._request("POST", "/api/generate", json={"model": name, "keep_alive": 0})

    def is_loaded(self, name: str) -> bool:
        """Whether the server holds a model of that name in memory."""
        loaded = self._request("GET", "/api/ps").json().get("models") or []
        return any(manifest_path(model["name"].lower()) == manifest_path(name) for model in loaded)

    def _manifest_digest(self, name: str) -> str | None:
        models = self._request("GET", "/api/tags").json().get("models") or []
        wanted = manifest_path(name)
        return next((model["digest"] for model in models if manifest_path(model["name"].lower()) == wanted), None)

    def _request(self, method: str, path: str, accept: tuple[int, ...] = (200,), **arguments: Any) -> httpx.Response:
        return self._retried(lambda: self._http.request(method, path, **arguments), f"{method} {path}", accept)

    def _retried(self, attempt: Callable[[], httpx.Response], what: str, accept: tuple[int, ...]) -> httpx.Response:
        """Do a request that may be repeated without harm, again after a pause if the connection or the server fails."""
        for number in range(_TRIES):
            last = number == _TRIES - 1
            try:
                answer = attempt()
            except _PASSING as error:
                if last:
                    raise OllamakeError(
                        f"{what} at {self.address} failed {_TRIES} times: {error or type(error)}"
                    ) from error
                reason = str(error) or type(error).__name__
            else:
                if answer.status_code in accept:
                    return answer
                reason = _reason(answer)
                if last or answer.status_code < 500:
                    raise OllamakeError(f"{what}: the Ollama server at {self.address} refuses: {reason}")
            log.info("%s: %s; trying again", what, reason)
            time.sleep(_FIRST_PAUSE * 2**number)
        raise AssertionError("the last try returns or raises")


def _chunks(path: Path, advance: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            advance(len(chunk))


def _reason(answer: httpx.Response) -> str:
    try:
        text = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = answer.text.strip()[:500] or answer.reason_phrase
    return f"{answer.status_code} {text}"


def _parameters(text: str) -> dict[str, list[str]]:
    """Parse show's parameters: one `name   value` a line, repeated for lists, texts as Go literals."""
    parsed: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name:
            parsed.setdefault(name, []).append(value.strip())
    return parsed
