"""A running Ollama, through its client package and JSON API."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama

from ollamake.damage import rebuild_command
from ollamake.errors import OllamakeError
from ollamake.file_digest import CHUNK
from ollamake.heartbeat import waiting
from ollamake.hidden_keys import require_no_key
from ollamake.installed_ollama import version_said
from ollamake.ollama_name import manifest_path
from ollamake.progress import progress_bar

log = logging.getLogger("ollamake")

_CONNECT_SECONDS = 5.0
_TRIES = 4
_FIRST_PAUSE = 0.5
"""Seconds; doubled after each try."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")

PATIENCE = 30.0
"""Seconds that a server may stay silent where it has nothing to compute."""
_SLOWEST_BYTES_PER_SECOND = 20e6
"""A server that reads and rewrites a GGUF slower than this is taken for hung."""
_FIRST_TOKEN_PATIENCES = 20
"""How many times PATIENCE a server may be silent while it loads a model or begins to create one."""

_PASSING = (httpx.TransportError, ConnectionError)
_FOR_GOOD = re.compile(
    r"no space left|quota exceeded|file too large|failed to validate|quantization is only|not in GGUF format"
    r"|exceeds file size|unsupported|invalid|template error|not found \(checked|unknown type|does not support"
    r"|blobs\S+: no such file",
    re.IGNORECASE,
)
"""Refusals with a 5xx status that come again however often one asks (Ollama answers most faults with 500)."""


class ServerUnreachable(OllamakeError):
    """No Ollama answers at the address."""

    address: str = ""
    nobody_there: bool = True
    """Whether nothing at all took the request: otherwise there is a server, which fails or is silent."""


class NoSuchModel(OllamakeError):
    """The server has no model of that name, or a blob of it is gone."""


@dataclass(frozen=True)
class ShownModel:
    """What a server says of a model: as POST /api/show gives it."""

    weights: str | None
    """sha256 of the weights, from the FROM line of the Modelfile it shows."""
    weights_path: str | None
    """Where the server has their blob."""
    system: str
    template: str
    license: str
    parameters: dict[str, list[str]]
    """Name -> its values, as the literals that the server prints."""
    adapter: str | None = None
    """sha256 of the adapter, from the ADAPTER line of the Modelfile it shows."""
    adapter_path: str | None = None


class OllamaServer:
    """One server. Every method raises OllamakeError naming its address when it cannot be reached or refuses.

    ``host`` is an address as Ollama takes it (name, host:port, URL with a path); None means OLLAMA_HOST. A key in
    OLLAMA_API_KEY is sent as a bearer token, by the client package. ``patience``: seconds that it may be silent; ``size``:
    bytes of the model that it has to load to answer.
    """

    def __init__(self, host: str | None, patience: float = PATIENCE, size: int = 0) -> None:
        require_no_key(host)
        self._patience = patience
        self._size = size
        timeout = httpx.Timeout(patience, connect=_CONNECT_SECONDS)
        try:
            self._client = ollama.Client(host=host, timeout=timeout)
            if self._client._client.base_url.host in _LOOPBACK:
                # A proxy in the environment is for others, as Go's clients have it; httpx would send everything through it.
                self._client = ollama.Client(host=host, timeout=timeout, trust_env=False)
        except ValueError as error:
            raise OllamakeError(f"ollama.host: {host!r} is not an address ({error})") from error
        self._http: httpx.Client = self._client._client

    @property
    def address(self) -> str:
        """The server's URL."""
        return str(self._http.base_url).rstrip("/")

    def version(self, once: bool = True) -> str:
        """Return the server's version. Raises ServerUnreachable.

        ``once``: ask once and briefly, whether it is there; of a server that has answered before more is expected.
        """
        try:
            if once:
                answer = self._http.get("/api/version", timeout=_CONNECT_SECONDS)
                answer.raise_for_status()
            else:
                answer = self._request("GET", "/api/version")
            return version_said(answer.json()["version"])
        except (*_PASSING, httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            unreachable = ServerUnreachable(
                f"no Ollama server answers at {self.address} ({_first_line(error)}). Start it (`ollama serve`),"
                " set ollama.host or OLLAMA_HOST to its address, or set ollama.target to store."
            )
            unreachable.address = self.address
            unreachable.nobody_there = not _is_there(error)
            raise unreachable from error

    def digests(self, once: bool = False) -> dict[tuple[str, str, str, str], str]:
        """Return name (as manifest_path) -> manifest digest of every model, in one request.

        ``once``: do not ask again where that fails, and raise ServerUnreachable.
        """
        try:
            if once:
                answer = self._http.get("/api/tags", timeout=_CONNECT_SECONDS)
                answer.raise_for_status()
            else:
                answer = self._request("GET", "/api/tags")
            models = answer.json().get("models") or []
            # A name that cannot have been given by us (more parts than a name has) is nobody's that is looked for.
            ours = [model for model in models if model["name"].count("/") <= 2]
            return {manifest_path(model["name"].lower()): model["digest"] for model in ours}
        except (*_PASSING, httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreachable = ServerUnreachable(
                f"the Ollama server at {self.address} does not list its models ({_first_line(error)})"
            )
            unreachable.address = self.address
            raise unreachable from error

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds the blob of this sha256 (hexadecimal)."""
        answer = self._request("HEAD", f"/api/blobs/sha256:{digest}", accept=(200, 404))
        return answer.status_code == 200

    def upload_blob(self, path: Path, digest: str) -> None:
        """Send a file as a blob, a chunk at a time. The server checks it against ``digest``."""
        size = path.stat().st_size

        def attempt() -> httpx.Response:
            with progress_bar(size, f"uploading {path.name}") as progress:
                return self._http.post(
                    f"/api/blobs/sha256:{digest}",
                    content=_chunks(path, progress.update),
                    headers={"Content-Length": str(size)},
                    timeout=self._timeout(size),
                )

        try:
            self._retried(attempt, f"upload of {path.name}", accept=(200, 201))
        except OllamakeError as error:
            if "digest mismatch" not in str(error):
                raise
            raise OllamakeError(
                f"{path} is not the file that was quantized: {error}. It was changed since, or damaged on the way. Delete it"
                f" and run again; it is quantized anew: {rebuild_command([path])}"
            ) from error

    def create(self, body: dict[str, Any], size: int) -> None:
        """Create a model; ``body`` as CreateRequest.as_api gives it, ``size`` the bytes of its weights.

        Waits until the server is done. It is not streamed: a client that drops out of a stream leaves the server's create
        hanging for ever, while without a stream the server finishes it.
        """
        with waiting(f"{self.address} creates {body['model']}"):
            answer = self._request("POST", "/api/create", json=body, timeout=self._timeout(size))
        status = _object(answer).get("status")
        if status != "success":
            raise OllamakeError(
                f"{self.address} did not create {body['model']}: it says {status!r}, expected 'success'"
            )

    def show(self, name: str) -> ShownModel:
        """Return what the server has under ``name``. Raises NoSuchModel if it has nothing, or not all of it."""
        # The client package leaves out the system prompt, so it is asked by hand.
        answer = self._request("POST", "/api/show", accept=(200, 404), json={"model": name})
        if answer.status_code == 404:
            raise NoSuchModel(f"the Ollama server at {self.address} cannot show {name}: {_reason(answer)}")
        shown = _object(answer)
        modelfile = shown.get("modelfile", "")
        blob = re.search(r"^FROM (.*sha256-([0-9a-f]{64}))\s*$", modelfile, re.MULTILINE)
        adapter = re.search(r"^ADAPTER (.*sha256-([0-9a-f]{64}))\s*$", modelfile, re.MULTILINE)
        return ShownModel(
            weights=blob[2] if blob else None,
            weights_path=blob[1] if blob else None,
            system=shown.get("system", ""),
            template=shown.get("template", ""),
            license=shown.get("license", ""),
            parameters=_parameters(shown.get("parameters", "")),
            adapter=adapter[2] if adapter else None,
            adapter_path=adapter[1] if adapter else None,
        )

    def unload(self, name: str) -> None:
        """Let a loaded model go, so that the next question is answered by what is registered now."""
        # 404: it was deleted while it was loaded, and nobody gets it by that name any more.
        self._request("POST", "/api/generate", accept=(200, 404), json={"model": name, "keep_alive": 0})

    def is_loaded(self, name: str) -> bool:
        """Whether the server holds a model of that name in memory."""
        loaded = _object(self._request("GET", "/api/ps")).get("models") or []
        return any(manifest_path(model["name"].lower()) == manifest_path(name) for model in loaded)

    def rendered(
        self,
        name: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """Return the prompt that a model would be given for a conversation, without answering it.

        Loads the model. Raises OllamakeError, also where the model takes no tools.
        """
        body: dict[str, Any] = {"model": name, "messages": messages, "_debug_render_only": True, "stream": False}
        body |= {"tools": tools} if tools else {}
        body |= {"options": options} if options else {}
        answer = self._request("POST", "/api/chat", json=body, timeout=self._timeout(self._size))
        try:
            return str(answer.json()["_debug_info"]["rendered_template"])
        except (ValueError, KeyError, TypeError) as error:
            raise OllamakeError(
                f"the Ollama server at {self.address} does not show the prompt it renders: {answer.text[:200]}"
            ) from error

    def token_ids(self, name: str, prompt: str, options: dict[str, Any] | None = None) -> tuple[list[int], int]:
        """Return the ids of a rendered prompt as the model's tokenizer gives them, and the number it evaluates.

        The ids are without the BOS that may be put before them, which the number counts; they are followed by those of the
        one token that is answered, which may have joined with the last.
        """
        options = (options or {}) | {"num_predict": 1, "temperature": 0, "seed": 1}
        body = {"model": name, "prompt": prompt, "template": "{{ .Prompt }}", "system": "", "stream": False}
        answer = _object(
            self._request("POST", "/api/generate", json=body | {"options": options}, timeout=self._timeout(self._size))
        )
        return list(answer.get("context") or []), int(answer.get("prompt_eval_count") or 0)

    def answer(self, name: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        """Return a model's answer to a conversation."""
        body = {"model": name, "messages": messages, "options": options, "stream": True}
        text = ""

        def attempt() -> httpx.Response:
            nonlocal text
            text = ""
            with self._http.stream("POST", "/api/chat", json=body, timeout=self._timeout(self._size)) as answer:
                if answer.status_code != 200:
                    answer.read()
                    return answer
                for line in _lines(answer.iter_text()):
                    part = _json(line)
                    if "error" in part:
                        raise OllamakeError(f"{name} at {self.address} did not answer: {part['error']}")
                    text += (part.get("message") or {}).get("content", "")
            return answer

        self._retried(attempt, f"a question to {name}", accept=(200,))
        return text

    def _timeout(self, size: int) -> httpx.Timeout:
        """Return the time-outs of what has to read ``size`` bytes, or to load a model."""
        seconds = _FIRST_TOKEN_PATIENCES * self._patience + size / _SLOWEST_BYTES_PER_SECOND
        return httpx.Timeout(self._patience, read=seconds, connect=_CONNECT_SECONDS)

    def _request(self, method: str, path: str, accept: tuple[int, ...] = (200,), **arguments: Any) -> httpx.Response:
        return self._retried(lambda: self._http.request(method, path, **arguments), f"{method} {path}", accept)

    def _retried(self, attempt: Callable[[], httpx.Response], what: str, accept: tuple[int, ...]) -> httpx.Response:
        """Do a request that may be repeated without harm, again after a pause if the connection or the server fails."""
        for number in range(_TRIES):
            last = number == _TRIES - 1
            try:
                answer = attempt()
            except _PASSING as error:
                reason = _first_line(error)
                if last:
                    raise OllamakeError(
                        f"{what}: the Ollama server at {self.address} failed {_TRIES} times ({reason}). See its log; run again"
                        " when it works: what is finished is kept."
                    ) from error
            else:
                if answer.status_code in accept:
                    return answer
                reason = _reason(answer)
                if last or answer.status_code < 500 or _FOR_GOOD.search(reason):
                    raise OllamakeError(
                        f"{what}: the Ollama server at {self.address} refuses: {reason}{_advice(reason)}"
                    )
            log.info("%s: %s; trying again", what, reason)
            time.sleep(_FIRST_PAUSE * 2**number)
        raise AssertionError("the last try returns or raises")


def _chunks(path: Path, advance: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            advance(len(chunk))


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """Split at line feeds alone: httpx's own also splits at U+0085 and the like, which Go leaves as they are in a text."""
    rest = ""
    for part in parts:
        *lines, rest = (rest + part).split("\n")
        yield from lines
    yield rest


def _json(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line) if line.strip() else {}
    except ValueError:
        return {"error": f"not JSON: {line[:200]}"}
    return value if isinstance(value, dict) else {"error": f"not an object: {line[:200]}"}


def _object(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises OllamakeError where something else than Ollama has answered."""
    try:
        return dict(answer.json())
    except (ValueError, TypeError) as error:
        raise OllamakeError(
            f"{answer.request.url} does not answer as Ollama does, but {answer.text[:200]!r}. Is something else there?"
        ) from error


def _first_line(error: Exception) -> str:
    """Return an error in a few words; httpx's time-outs have none of their own."""
    if isinstance(error, httpx.TimeoutException):
        return f"silent for too long, {type(error).__name__}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _is_there(error: Exception) -> bool:
    """Whether a failure is that of a server which is there: not every web page at the address is one."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.ReadError | httpx.ReadTimeout | httpx.RemoteProtocolError)


def _reason(answer: httpx.Response) -> str:
    try:
        text = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = answer.text.strip()[:500] or answer.reason_phrase
    return f"{answer.status_code} {text}"


def _advice(reason: str) -> str:
    if "file too large" in reason:
        return ". Its filesystem or limits allow no file of that size; give its models another place (OLLAMA_MODELS)."
    if "no space left" in reason or "quota exceeded" in reason:
        return (
            ". The disk of its models is full; a registration needs as much room as the GGUF, three times that for Ollama 0.30"
            " and later. Make room there (OLLAMA_MODELS) and run again."
        )
    if "exceeds file size" in reason:
        return ". Its blob of these weights is cut short; delete it there (blobs/ in OLLAMA_MODELS) and run again."
    if "failed to validate" in reason:
        return (
            ". Its log says why: the disk of its models (OLLAMA_MODELS) is full, since it needs three times the size of the GGUF"
            " there, or its llama.cpp does not know this architecture or type; a newer Ollama may."
        )
    if reason.startswith(("401", "403")):
        return ". It wants another key (OLLAMA_API_KEY), or to be reached under another address."
    return ""


def _parameters(text: str) -> dict[str, list[str]]:
    """Parse show's parameters: one `name   value` a line, repeated for lists, texts as Go literals."""
    parsed: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(" ")
        if name:
            parsed.setdefault(name, []).append(value.strip())
    return parsed
