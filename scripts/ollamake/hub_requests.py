"""Bounded requests to one repository of the Hugging Face hub: what was asked for, and never a byte more than that.

Session, token and addresses are huggingface_hub's. Its own readers of safetensors headers take whatever a server sends
(``HfApi.parse_safetensors_file_metadata``: a whole shard where Range is ignored, and 100 kB of weights where it is not),
and its retries wait as long as a server says; hence the reading and the retries here.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from ollamake.errors import OllamakeError

log = logging.getLogger("ollamake")

PUBLIC_HUB = "https://huggingface.co"
MOST_IN_TOTAL = 300_000_000
"""Bytes of all answers together: twenty times the headers and the index of DeepSeek-V3 (91,991 tensors)."""

_MOST_OF_INFO = 20_000_000
"""Bytes of the list of a repository's files."""
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may be answered; the list is huggingface_hub's (http_backoff)."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TIMEOUTS_OF_AN_ANSWER = 30
"""An answer that trickles for so many timeouts is given up."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for the hub, in seconds."""

    timeout: float = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    """Of silence; set by HF_HUB_DOWNLOAD_TIMEOUT."""
    tries: int = 4
    first_pause: float = 1.0
    """Before the second try; doubled after each."""
    longest_pause: float = 60.0
    """What a server may ask for (Retry-After); where it asks for more, the user is told so at once."""


class HubUnreachable(OllamakeError):
    """No answer that can be used, for a reason that may pass; the message is that reason."""


class _Passing(Exception):
    """A fault of one request, worth another try after ``pause`` seconds (None: as long as after any other fault)."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class HubRepository:
    """Reads from a model's repository. Its methods may be called from several threads.

    They raise HubUnreachable for faults that may pass, OllamakeError for all others.
    """

    def __init__(self, repo_id: str, *, endpoint: str | None = None, patience: Patience | None = None) -> None:
        self.repo_id = repo_id
        self.received = 0
        """Bytes of bodies so far."""
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._patience = patience or Patience()
        # Not huggingface_hub's build_hf_headers: it looks up what else runs here, with a request of its own to the hub.
        self._token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def page(self) -> str:
        """The repository's page on the public hub, whichever mirror is asked."""
        return f"{PUBLIC_HUB}/{self.repo_id}"

    def close(self) -> None:
        """End the pauses of requests in other threads, and their further tries."""
        self._closed.set()

    def commit_and_files(self, revision: str) -> tuple[str, frozenset[str]]:
        """Return the commit that a branch, tag or commit stands for, and the names of its files."""
        # GET /api/models/ORG/REPO/revision/REVISION, as HfApi.model_info asks it.
        url = (
            f"{self._endpoint}/api/models/{self.repo_id}/revision/{quote(revision, safe='')}?expand=sha&expand=siblings"
        )
        content, _ = self._get(url, _MOST_OF_INFO, f"revision {revision!r}")
        try:
            info: dict[str, Any] = json.loads(content)
            commit, files = info["sha"], frozenset(file["rfilename"] for file in info["siblings"])
            if not re.fullmatch(r"[0-9a-f]{40}", commit):
                raise ValueError(f"{commit!r} is not a commit")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._not_a_hub("its answer about the model has no commit and list of files") from error
        return commit, files

    def file(self, name: str, commit: str, most: int) -> bytes:
        """Return a whole file, of at most ``most`` bytes."""
        return self._get(self._url(name, commit), most, name)[0]

    def part(self, name: str, commit: str, begin: int, size: int) -> tuple[bytes, int]:
        """Return ``size`` bytes of a file from ``begin`` on, fewer where it ends, and the bytes of the whole file."""
        return self._get(self._url(name, commit), size, name, begin)

    def _url(self, name: str, commit: str) -> str:
        return hf_hub_url(self.repo_id, name, revision=commit, endpoint=self._endpoint)

    def _get(self, url: str, most: int, what: str, begin: int | None = None) -> tuple[bytes, int]:
        """Return a body and the size of the file that it is (a part) of; try again what may pass."""
        pause = self._patience.first_pause
        for tries_left in reversed(range(self._patience.tries)):
            try:
                return self._read(url, most, what, begin)
            except OfflineModeIsEnabled as error:
                raise HubUnreachable("offline: HF_HUB_OFFLINE is set, so the hub is not asked") from error
            except (httpx2.LocalProtocolError, UnicodeEncodeError):
                # `from None`: the original names the header, which is the token.
                raise OllamakeError(
                    "The token for the Hugging Face hub has characters that no token has. Set HF_TOKEN to the token as"
                    f" {PUBLIC_HUB}/settings/tokens shows it, or log in again with `hf auth login`."
                ) from None
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                raise self._not_a_hub(self._said(error)) from error
            except httpx2.TransportError as error:
                fault, wait = HubUnreachable(self._unreachable(error, url)), pause
                fault.__cause__ = error
                if _certificate_fault(error):
                    raise fault from error
            except _Passing as error:
                fault, wait = HubUnreachable(str(error)), pause if error.pause is None else error.pause
                fault.__cause__ = error
            if not tries_left or wait > self._patience.longest_pause:
                break
            log.info("%s; trying again in %.0f s", fault, wait)
            if self._closed.wait(wait):
                break
            pause *= 2
        raise fault

    def _read(self, url: str, most: int, what: str, begin: int | None) -> tuple[bytes, int]:
        # Whoever compresses a part of a file cannot be read, and the size of the rest would not be known.
        headers = {"user-agent": "ollamake", "accept-encoding": "identity"}
        if self._token:
            # The session drops it where a redirect leads to another host (httpx2's Client._redirect_headers).
            headers["authorization"] = f"Bearer {self._token}"
        if begin is not None:
            headers["range"] = f"bytes={begin}-{begin + most - 1}"
        end_at = time.monotonic() + _TIMEOUTS_OF_AN_ANSWER * self._patience.timeout
        with _session().stream("GET", url, headers=headers, timeout=self._patience.timeout) as response:
            if response.status_code not in (200, 206):
                raise self._refusal(response, what)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise OllamakeError(f"{_host(response)} compresses {what}, though asked not to. Ask its operator.")
            expected, total = self._announced(response, most, what, begin)
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                self._count(len(piece))
                if len(content) > most:
                    raise self._too_long(response, what, most)
                if time.monotonic() > end_at:
                    raise _Passing(f"{_host(response)} sends {what} too slowly ({len(content)} bytes so far)")
        if expected is not None and len(content) != expected:
            raise _Passing(f"{_host(response)} sent {len(content)} of {expected} bytes of {what}")
        return bytes(content), len(content) if total is None else total

    def _announced(
        self, response: httpx2.Response, most: int, what: str, begin: int | None
    ) -> tuple[int | None, int | None]:
        """Return the bytes to come and those of the whole file, None where unsaid; refuse before a byte is read."""
        length = response.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else None
        if begin is None:
            if size is not None and size > most:
                raise self._too_long(response, what, most)
            return size, size
        if response.status_code == 200:
            if begin or size is None or size > most:
                raise OllamakeError(
                    f"{_host(response)} ignores which part of {what} is asked for and sends all of it"
                    f" ({length or 'unknown'} bytes), so headers cannot be read without weights. Nothing was read. Where"
                    f" HF_ENDPOINT or a proxy stands between this machine and {PUBLIC_HUB}, it must pass on Range."
                )
            return size, size
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if first != begin or last >= total or last - first >= most:
            raise OllamakeError(
                f"{_host(response)} answers with another part of {what} than bytes {begin} to {begin + most - 1}"
                f" (Content-Range: {response.headers.get('content-range', 'none')!r}). Ask its operator."
            )
        return min(most, total - begin), total

    def _count(self, size: int) -> None:
        with self._lock:
            self.received += size
            if self.received > MOST_IN_TOTAL:
                raise OllamakeError(
                    f"{self.page}: more than {MOST_IN_TOTAL // 1_000_000} MB came, which no model's headers have."
                    " Download the model and give its folder as `base`."
                )

    def _refusal(self, response: httpx2.Response, what: str) -> Exception:
        """Return the error that a status stands for. Which headers tell: huggingface_hub's hf_raise_for_status."""
        status, host = response.status_code, _host(response)
        code, said = response.headers.get("x-error-code"), response.headers.get("x-error-message")
        if status in _PASSING:
            pause = _pause_asked_for(response)
            if status == 429:
                wait = "" if pause is None else f" and asks to wait {pause:.0f} s"
                more = "" if self._token else " With HF_TOKEN set the hub allows more."
                return _Passing(f"{host} had too many requests from here (status 429){wait}.{more}".strip("."), pause)
            return _Passing(f"{host} fails (status {status})", pause)
        token = "the token that is set (HF_TOKEN, or `hf auth login`)"
        if code == "GatedRepo":
            return OllamakeError(
                f"{self.repo_id} is gated: its files are only for those who accept its conditions. Accept them at"
                f" {self.page}, then "
                + (
                    f"use a token of the same account; {token} has no access. A fine-grained token needs `Read access to"
                    " contents of all public gated repos you can access`."
                    if self._token
                    else f"set HF_TOKEN to a token of that account ({PUBLIC_HUB}/settings/tokens)."
                )
            )
        if code == "RevisionNotFound":
            return OllamakeError(
                f"{self.repo_id} has no {what}. Give a branch, tag or commit of {self.page}/commits as org/name@revision."
            )
        if code == "EntryNotFound":
            return OllamakeError(f"{self.repo_id} lists {what}, but {host} does not have it. Try again later.")
        if said == "Invalid credentials in Authorization header":
            return OllamakeError(
                f"{host} does not know {token}. Take a valid one from {PUBLIC_HUB}/settings/tokens, or unset HF_TOKEN."
            )
        if code == "RepoNotFound" or status in (401, 404):
            return OllamakeError(
                f"There is no folder {self.repo_id!r} here, and no model of that name at {host}, or it is private. Check the"
                " spelling (upper and lower case count); "
                + (
                    f"if it is private, {token} may not read it."
                    if self._token
                    else f"if it is private, set HF_TOKEN to a token that may read it ({PUBLIC_HUB}/settings/tokens)."
                )
            )
        if status == 416:
            return OllamakeError(f"{self.repo_id}: {what} is damaged on the hub: it ends before its header does.")
        return OllamakeError(f"{host} refuses {what} of {self.repo_id} (status {status}). See {self.page}.")

    def _unreachable(self, error: httpx2.TransportError, url: str) -> str:
        try:
            host = error.request.url.netloc.decode("ascii").rpartition("@")[2]
        except RuntimeError:
            host = urlsplit(url).netloc.rpartition("@")[2]
        if fault := _certificate_fault(error):
            return (
                f"the certificate of {host} is not accepted ({fault}). Behind a proxy that looks into TLS set SSL_CERT_FILE"
                " to a file with its certificate; else check the clock of this machine"
            )
        if isinstance(error, httpx2.TimeoutException):
            return f"no answer from {host} within {self._patience.timeout:g} s (HF_HUB_DOWNLOAD_TIMEOUT)"
        if isinstance(error, httpx2.ConnectError):
            return f"offline: {host} cannot be reached ({self._said(error)})"
        return f"the connection to {host} broke off ({self._said(error)})"

    def _said(self, error: Exception) -> str:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return text.replace(self._token, "(token)") if self._token else text

    def _not_a_hub(self, why: str) -> OllamakeError:
        host = urlsplit(self._endpoint).netloc.rpartition("@")[2] or "HF_ENDPOINT"
        return OllamakeError(
            f"{host} does not answer as the Hugging Face hub does: {why}. Check HF_ENDPOINT (usually unset), and whether"
            " a login page of the network answers in its place."
        )

    def _too_long(self, response: httpx2.Response, what: str, most: int) -> OllamakeError:
        return OllamakeError(
            f"{_host(response)} sends more than the {most} bytes that {what} of {self.repo_id} may have; the rest was not"
            " read. Download the model and give its folder as `base`."
        )


def _session() -> httpx2.Client:
    """Return huggingface_hub's session. Raises OllamakeError where certificates or proxies that are set are none."""
    try:
        return get_session()
    except (OSError, ImportError, ValueError, httpx2.InvalidURL) as error:
        # The text of the other two may have a proxy's password.
        why = f": {error}" if isinstance(error, (OSError, ImportError)) else ""
        raise OllamakeError(
            f"Connections to the Hugging Face hub cannot be set up ({type(error).__name__}{why}). Check the environment:"
            " SSL_CERT_FILE and SSL_CERT_DIR must be there and hold certificates, HTTPS_PROXY and ALL_PROXY must be http://"
            " or https:// addresses."
        ) from error


def _host(response: httpx2.Response) -> str:
    return response.url.netloc.decode("ascii").rpartition("@")[2]


def _pause_asked_for(response: httpx2.Response) -> float | None:
    """Return the seconds after which a server wants to be asked again, None where it does not say."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _certificate_fault(error: BaseException | None) -> str | None:
    """Return what is wrong with a certificate where that is behind an error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None
