"""A server that speaks OpenAI's API: vLLM, TGI, llama-server, Ollama's /v1; and what it says of itself beside that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from ollamake.errors import OllamakeError

_SHOWN = 200


@dataclass(frozen=True)
class Completion:
    """What a server answered. ``finish_reason``: `stop` if the model ended by itself, `length` if it was cut off."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """One server. Raises OllamakeError, naming the address, for everything that is not an answer."""

    def __init__(
        self, url: str, key: str | None = None, key_place: str = "OPENAI_API_KEY", patience: float = 60
    ) -> None:
        """``url``: with /v1 at its end. ``key_place``: the variable that ``key`` is from. ``patience``: seconds of silence."""
        self.key_place = key_place
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            address = httpx.URL(url.rstrip("/"))
            # A name and password in it are sent, but shown nowhere.
            secret = (address.username, address.password) if address.userinfo and not key else None
            self.url = str(address.copy_with(userinfo=b"")) if address.userinfo else url.rstrip("/")
            self._client = httpx.Client(headers=headers, timeout=patience, trust_env=False, auth=secret)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise OllamakeError(f"--url or the key in {key_place} cannot be sent: {error}") from error
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """Return what /models lists: objects with an ``id``."""
        found = self._json("GET", "/models").get("data")
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), str) for one in found
        ):
            raise OllamakeError(
                f"{self.url}/models: expected {{data: [{{id: ...}}]}}, as of OpenAI's API; found {_shown(found)}"
            )
        return found

    def complete(self, model: str, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Completion:
        """Return the answer to a conversation, at temperature 0 with a fixed seed, all at once."""
        answer = self._json("POST", "/chat/completions", _body(model, messages, max_tokens))
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text = _said(choice["message"])
            return Completion(
                text, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens")
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise OllamakeError(
                f"{self.url}/chat/completions: expected an answer with choices[0].message; found {_shown(answer)}"
            ) from error

    def stream(self, model: str, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Completion:
        """Return the same answer from a stream of server-sent events, which must come to its end."""
        where = f"{self.url}/chat/completions (stream)"
        text, reason, ended = "", None, False
        with (
            self._faults(),
            self._client.stream(
                "POST", f"{self.url}/chat/completions", json=_body(model, messages, max_tokens) | {"stream": True}
            ) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                self._refuse(answer, "/chat/completions (stream)")
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    ended = True
                    break
                try:
                    event = json.loads(data)
                    if "error" in event:
                        raise OllamakeError(f"{where}: the server broke off: {_shown(event['error'])}")
                    for choice in event.get("choices") or []:
                        text += _said(choice.get("delta") or {})
                        reason = choice.get("finish_reason") or reason
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise OllamakeError(f"{where}: expected a chunk of OpenAI's API; found {_shown(data)}") from error
        if not ended and reason is None:
            raise OllamakeError(f"{where}: the stream broke off after {len(text)} characters; look at the server's log")
        return Completion(text, reason, None, None)

    def context(self, model: str, models: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
        """Return how many tokens a conversation may have, and where that is said; None if the server does not say it.

        vLLM says it in /v1/models, TGI in /info, llama-server in /props, Ollama in /api/ps of models that are loaded.
        """
        listed = {one["id"]: one for one in models}
        entry = listed.get(model, {})
        for one in (entry, listed.get(str(entry.get("parent")), {})):
            if isinstance(one.get("max_model_len"), int):
                return one["max_model_len"], "/v1/models"
        settings = self.beside("/props").get("default_generation_settings")
        if isinstance(settings, dict) and isinstance(settings.get("n_ctx"), int):
            return settings["n_ctx"], "/props"
        if (total := self.beside("/info").get("max_total_tokens")) and isinstance(total, int):
            return total, "/info"
        for loaded in self.beside("/api/ps").get("models") or []:
            if loaded.get("name") in (model, f"{model}:latest") and isinstance(loaded.get("context_length"), int):
                return loaded["context_length"], "/api/ps"
        return None

    def added_system(self, model: str) -> str | None:
        """Return the system prompt that the server puts before conversations without one: that of a model in Ollama."""
        system = self.beside("/api/show", {"model": model}).get("system")
        return system if isinstance(system, str) and system else None

    def is_tgi(self) -> bool:
        """Whether it is TGI, which lists its base by its path and takes any name for it."""
        return "max_total_tokens" in self.beside("/info")

    def beside(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what the server says at a path of its own, beside /v1; {} where it has none."""
        root = self.url.removesuffix("/v1")
        try:
            answer = self._client.post(f"{root}{path}", json=body) if body else self._client.get(f"{root}{path}")
            value = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._faults():
            answer = self._client.request(method, f"{self.url}{path}", json=body)
        if answer.status_code != 200:
            self._refuse(answer, path)
        try:
            value = answer.json()
        except ValueError:
            value = answer.text
        if not isinstance(value, dict):
            raise OllamakeError(
                f"{self.url}{path}: expected a JSON object, as of OpenAI's API; found {_shown(value)}. Is --url the address of"
                " a model server, with /v1 at its end?"
            )
        return value

    def _refuse(self, answer: httpx.Response, path: str) -> None:
        said = _shown(answer.text)
        if answer.status_code in (401, 403):
            raise OllamakeError(
                f"{self.url}{path}: the server asks for a key ({answer.status_code}): put it into the environment variable"
                f" {self.key_place}. It said: {said}"
            )
        if answer.status_code == 503:
            raise OllamakeError(
                f"{self.url}{path}: the server is not ready yet (503): {said}. Try again when it has loaded"
            )
        advice = " Is --url right, with /v1 at its end?" if answer.status_code == 404 and path == "/models" else ""
        raise OllamakeError(f"{self.url}{path}: the server refuses ({answer.status_code}): {said}.{advice}")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise OllamakeError(
                f"{self.url}: no answer within {self._patience:g} seconds (--timeout); the server may still be loading"
            ) from error
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.DecodingError) as error:
            raise OllamakeError(
                f"{self.url}: the connection broke off ({error or type(error).__name__}); look at the server's log"
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise OllamakeError(
                f"no server answers at {self.url}: {error or type(error).__name__}. Start it, or give its address in --url"
            ) from error


def _body(model: str, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> dict[str, Any]:
    return {"model": model, "messages": list(messages), "temperature": 0, "seed": 1, "max_tokens": max_tokens}


def _said(message: Mapping[str, Any]) -> str:
    """Return what a message or a piece of one says; of a model that thinks first, that as well."""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return str(thought) + str(message.get("content") or "")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
