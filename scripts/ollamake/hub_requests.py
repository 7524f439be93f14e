"""Bounded requests to one repository of the Hugging Face hub: what was asked for, and never a byte more than that.

Session, token and addresses are huggingface_hub's. Its own readers of safetensors headers take whatever a server sends
(``HfApi.parse_safetensors_file_metadata``: a whole shard where Range is ignored, and 100 kB of weights where it is not),
and its retries wait as long as a server says; hence the reading and the retries here.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled

from ollamake.errors import OllamakeError
from ollamake.hub_content import Content
from ollamake.hub_faults import (
    PUBLIC_HUB,
    HubUnreachable,
    PassingFault,
    certificate_fault,
    host_of,
    not_a_hub,
    refusal,
    unreachable,
    without_token,
)

log = logging.getLogger("ollamake")

MOST_IN_TOTAL = 300_000_000
"""Bytes of all answers together: twenty times the headers and the index of DeepSeek-V3 (91,991 tensors)."""

_MOST_OF_INFO = 20_000_000
"""Bytes of the list of a repository's files."""
_Answer = TypeVar("_Answer")
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


@dataclass(frozen=True)
class RepositoryState:
    """A repository at one commit."""

    commit: str
    modified: str
    """Date of the commit, YYYY-MM-DD; "" where the hub does not say."""
    contents: dict[str, Content | None]
    """File -> what it holds; None where the hub does not say it whole."""


class Sink(Protocol):
    """Takes the bytes of one file in their order."""

    size: int
    """Bytes of the whole file."""
    position: int
    """Bytes that are there."""

    def take(self, piece: bytes) -> None:
        """Take the bytes that follow."""

    def restart(self) -> None:
        """Forget all of them."""


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
        commit, files, _ = self._info(url, revision)
        return commit, frozenset(file["rfilename"] for file in files)

    def state(self, revision: str) -> RepositoryState:
        """Return the commit that a branch, tag or commit stands for, and sizes and digests of its files."""
        # As HfApi.model_info asks with files_metadata=True. Files in Xet have `lfs` as well.
        url = f"{self._endpoint}/api/models/{self.repo_id}/revision/{quote(revision, safe='')}?blobs=true"
        commit, files, info = self._info(url, revision)
        modified = str(info.get("lastModified") or "")[:10]
        return RepositoryState(commit, modified, {file["rfilename"]: _content(file) for file in files})

    def _info(self, url: str, revision: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
        """Return commit, files and all of what the hub says about a repository."""
        content, _ = self._get(url, _MOST_OF_INFO, f"revision {revision!r}")
        try:
            info: dict[str, Any] = json.loads(content)
            commit, files = info["sha"], info["siblings"]
            if not re.fullmatch(r"[0-9a-f]{40}", commit):
                raise ValueError(f"{commit!r} is not a commit")
            if not all(isinstance(file["rfilename"], str) for file in files):
                raise ValueError("files have no names")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise not_a_hub(self._endpoint, "its answer about the model has no commit and list of files") from error
        return commit, files, info

    def file(self, name: str, commit: str, most: int) -> bytes:
        """Return a whole file, of at most ``most`` bytes."""
        return self._get(self._url(name, commit), most, name)[0]

    def part(self, name: str, commit: str, begin: int, size: int) -> tuple[bytes, int]:
        """Return ``size`` bytes of a file from ``begin`` on, fewer where it ends, and the bytes of the whole file."""
        return self._get(self._url(name, commit), size, name, begin)

    def stream(self, name: str, commit: str, sink: Sink) -> None:
        """Pass the bytes of a file that ``sink`` does not have yet on to it, however often the connection is cut.

        Tries count from the last progress. Raises OllamakeError also where the file has another size than ``sink``
        expects. What ``sink`` raises is passed on.
        """
        url = self._url(name, commit)
        furthest = sink.position

        def progress() -> int:
            nonlocal furthest
            furthest = max(furthest, sink.position)
            return furthest

        self._persist(url, lambda: self._follow(url, name, sink), progress)

    def _url(self, name: str, commit: str) -> str:
        return hf_hub_url(self.repo_id, name, revision=commit, endpoint=self._endpoint)

    def _get(self, url: str, most: int, what: str, begin: int | None = None) -> tuple[bytes, int]:
        """Return a body and the size of the file that it is (a part) of; try again what may pass."""
        return self._persist(url, lambda: self._read(url, most, what, begin))

    def _persist(self, url: str, read: Callable[[], _Answer], progress: Callable[[], int] = lambda: 0) -> _Answer:
        """Return what ``read`` does; try again what may pass, and count tries anew once there is more ``progress``."""
        before = progress()
        tries_left, pause = self._patience.tries, self._patience.first_pause
        while True:
            try:
                return read()
            except OfflineModeIsEnabled as error:
                raise HubUnreachable("offline: HF_HUB_OFFLINE is set, so the hub is not asked") from error
            except (httpx2.LocalProtocolError, UnicodeEncodeError):
                # `from None`: the original names the header, which is the token.
                raise OllamakeError(
                    "The token for the Hugging Face hub has characters that no token has. Set HF_TOKEN to the token as"
                    f" {PUBLIC_HUB}/settings/tokens shows it, or log in again with `hf auth login`."
                ) from None
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                raise not_a_hub(self._endpoint, without_token(error, self._token)) from error
            except httpx2.TransportError as error:
                fault, asked = HubUnreachable(unreachable(error, url, self._patience.timeout, self._token)), None
                fault.__cause__ = error
                if certificate_fault(error):
                    raise fault from error
            except PassingFault as error:
                fault, asked = HubUnreachable(str(error)), error.pause
                fault.__cause__ = error
            if progress() > before:
                before = progress()
                tries_left, pause = self._patience.tries, self._patience.first_pause
            tries_left -= 1
            wait = pause if asked is None else asked
            if not tries_left or wait > self._patience.longest_pause:
                raise fault
            log.info("%s; trying again in %.0f s", fault, wait)
            if self._closed.wait(wait):
                raise fault
            pause *= 2

    @contextmanager
    def _response(self, url: str, what: str, part: str | None) -> Iterator[httpx2.Response]:
        """Yield an answer whose body is not read yet: the whole file, or the ``part`` that Range asks for."""
        # Whoever compresses a part of a file cannot be read, and the size of the rest would not be known.
        headers = {"user-agent": "ollamake", "accept-encoding": "identity"}
        if self._token:
            # The session drops it where a redirect leads to another host (httpx2's Client._redirect_headers).
            headers["authorization"] = f"Bearer {self._token}"
        if part is not None:
            headers["range"] = f"bytes={part}"
        with _session().stream("GET", url, headers=headers, timeout=self._patience.timeout) as response:
            if response.status_code not in (200, 206):
                raise refusal(response, self.repo_id, what, bool(self._token))
            if response.headers.get("content-encoding", "identity") != "identity":
                raise OllamakeError(f"{host_of(response)} compresses {what}, though asked not to. Ask its operator.")
            yield response

    def _follow(self, url: str, what: str, sink: Sink) -> None:
        """Let ``sink`` take what it lacks, in one answer."""
        if sink.position == sink.size:
            return
        with self._response(url, what, f"{sink.position}-" if sink.position else None) as response:
            host = host_of(response)
            if response.status_code == 200 and sink.position:
                log.info("%s ignores which part of %s is asked for; it is read from the beginning", host, what)
                sink.restart()
            self._require_rest(response, what, sink)
            for piece in response.iter_raw():
                if sink.position + len(piece) > sink.size:
                    raise self._resized(response, what, f"more than the {sink.size}", sink.size)
                sink.take(piece)
        if sink.position < sink.size:
            raise PassingFault(f"{host} sent {sink.position} of {sink.size} bytes of {what}")

    def _require_rest(self, response: httpx2.Response, what: str, sink: Sink) -> None:
        """Refuse an answer that is not the rest of the file, before a byte of it is read."""
        if response.status_code == 200:
            length = response.headers.get("content-length", "")
            if length.isdecimal() and int(length) < sink.size:
                raise PassingFault(f"{host_of(response)} has {length} of {sink.size} bytes of {what} to send")
            if length.isdecimal() and int(length) > sink.size:
                raise self._resized(response, what, length, sink.size)
            return
        said = response.headers.get("content-range", "none")
        found = _CONTENT_RANGE.fullmatch(said.strip())
        first, _, total = map(int, found.groups()) if found else (-1, -1, -1)
        if first != sink.position:
            raise self._another_part(response, what, f"bytes {sink.position} and what follows them")
        if total != sink.size:
            raise self._resized(response, what, str(total), sink.size)

    def _read(self, url: str, most: int, what: str, begin: int | None) -> tuple[bytes, int]:
        part = None if begin is None else f"{begin}-{begin + most - 1}"
        end_at = time.monotonic() + _TIMEOUTS_OF_AN_ANSWER * self._patience.timeout
        with self._response(url, what, part) as response:
            expected, total = self._announced(response, most, what, begin)
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                self._count(len(piece))
                if len(content) > most:
                    raise self._too_long(response, what, most)
                if time.monotonic() > end_at:
                    raise PassingFault(f"{host_of(response)} sends {what} too slowly ({len(content)} bytes so far)")
        if expected is not None and len(content) != expected:
            raise PassingFault(f"{host_of(response)} sent {len(content)} of {expected} bytes of {what}")
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
                    f"{host_of(response)} ignores which part of {what} is asked for and sends all of it"
                    f" ({length or 'unknown'} bytes), so headers cannot be read without weights. Nothing was read. Where"
                    f" HF_ENDPOINT or a proxy stands between this machine and {PUBLIC_HUB}, it must pass on Range."
                )
            return size, size
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if first != begin or last >= total or last - first >= most:
            raise self._another_part(response, what, f"bytes {begin} to {begin + most - 1}")
        return min(most, total - begin), total

    def _count(self, size: int) -> None:
        with self._lock:
            self.received += size
            if self.received > MOST_IN_TOTAL:
                raise OllamakeError(
                    f"{self.page}: more than {MOST_IN_TOTAL // 1_000_000} MB came, which no model's headers have."
                    " Download the model and give its folder as `base`."
                )

    def _another_part(self, response: httpx2.Response, what: str, asked: str) -> OllamakeError:
        return OllamakeError(
            f"{host_of(response)} answers with another part of {what} than {asked}"
            f" (Content-Range: {response.headers.get('content-range', 'none')!r}). Ask its operator."
        )

    def _resized(self, response: httpx2.Response, what: str, found: str, expected: int) -> OllamakeError:
        return OllamakeError(
            f"{self.repo_id}: {what} should have {expected} bytes, {host_of(response)} sends {found}. Where HF_ENDPOINT or a"
            f" proxy stands between this machine and {PUBLIC_HUB}, it changes files."
        )

    def _too_long(self, response: httpx2.Response, what: str, most: int) -> OllamakeError:
        return OllamakeError(
            f"{host_of(response)} sends more than the {most} bytes that {what} of {self.repo_id} may have; the rest was not"
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


def _content(file: dict[str, Any]) -> Content | None:
    """Return what the hub's list says about a file's content."""
    lfs = file.get("lfs")
    try:
        if lfs:
            return Content(lfs["size"], "sha256", lfs["sha256"])
        return Content(file["size"], "git_sha1", file["blobId"])
    except (ValueError, TypeError, KeyError):
        return None
