"""What a fault between here and the Hugging Face hub means, and what to do about it, in one sentence each.

Neither a token nor an address that is signed for its user stands in any of them.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx2
from huggingface_hub.utils import parse_ratelimit_headers

from ollamake.errors import OllamakeError

PUBLIC_HUB = "https://huggingface.co"

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may be answered; the list is huggingface_hub's (http_backoff)."""


class HubUnreachable(OllamakeError):
    """No answer that can be used, for a reason that may pass; the message is that reason."""


class RevisionGone(OllamakeError):
    """A repository has not, or no longer, the branch, tag or commit that was asked for."""


class PassingFault(Exception):
    """A fault of one request, worth another try after ``pause`` seconds (None: as long as after any other fault)."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def refusal(response: httpx2.Response, repo_id: str, what: str, with_token: bool) -> Exception:
    """Return the error that a status stands for. Which headers tell: huggingface_hub's hf_raise_for_status."""
    status, host = response.status_code, host_of(response)
    code, said = response.headers.get("x-error-code"), response.headers.get("x-error-message")
    page = f"{PUBLIC_HUB}/{repo_id}"
    if status in _PASSING:
        pause = _pause_asked_for(response)
        if status == 429:
            wait = "" if pause is None else f" and asks to wait {pause:.0f} s"
            more = "" if with_token else " With HF_TOKEN set the hub allows more."
            return PassingFault(f"{host} had too many requests from here (status 429){wait}.{more}".strip("."), pause)
        return PassingFault(f"{host} fails (status {status})", pause)
    token = "the token that is set (HF_TOKEN, or `hf auth login`)"
    if code == "GatedRepo":
        return OllamakeError(
            f"{repo_id} is gated: its files are only for those who accept its conditions. Accept them at {page}, then "
            + (
                f"use a token of the same account; {token} has no access. A fine-grained token needs `Read access to"
                " contents of all public gated repos you can access`."
                if with_token
                else f"set HF_TOKEN to a token of that account ({PUBLIC_HUB}/settings/tokens)."
            )
        )
    if code == "RevisionNotFound":
        return RevisionGone(
            f"{repo_id} has no {what}. Give a branch, tag or commit of {page}/commits as org/name@revision."
        )
    if code == "EntryNotFound":
        return OllamakeError(f"{repo_id} lists {what}, but {host} does not have it. Try again later.")
    if said == "Invalid credentials in Authorization header":
        return OllamakeError(
            f"{host} does not know {token}. Take a valid one from {PUBLIC_HUB}/settings/tokens, or unset HF_TOKEN."
        )
    if code == "RepoNotFound" or status in (401, 404):
        return OllamakeError(
            f"There is no folder {repo_id!r} here, and no model of that name at {host}, or it is private. Check the"
            " spelling (upper and lower case count); "
            + (
                f"if it is private, {token} may not read it."
                if with_token
                else f"if it is private, set HF_TOKEN to a token that may read it ({PUBLIC_HUB}/settings/tokens)."
            )
        )
    if status == 416:
        return OllamakeError(f"{repo_id}: {what} is damaged on the hub: it ends before its header does.")
    return OllamakeError(f"{host} refuses {what} of {repo_id} (status {status}). See {page}.")


def unreachable(error: httpx2.TransportError, url: str, timeout: float, token: str | None) -> str:
    """Say why there is no connection, or no longer; ``timeout`` is that of silence, in seconds."""
    try:
        host = error.request.url.netloc.decode("ascii").rpartition("@")[2]
    except RuntimeError:
        host = urlsplit(url).netloc.rpartition("@")[2]
    if fault := certificate_fault(error):
        return (
            f"the certificate of {host} is not accepted ({fault}). Behind a proxy that looks into TLS set SSL_CERT_FILE"
            " to a file with its certificate; else check the clock of this machine"
        )
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer from {host} within {timeout:g} s (HF_HUB_DOWNLOAD_TIMEOUT)"
    if isinstance(error, httpx2.ConnectError):
        return f"offline: {host} cannot be reached ({without_token(error, token)})"
    return f"the connection to {host} broke off ({without_token(error, token)})"


def without_token(error: Exception, token: str | None) -> str:
    """Return what an error says, on one line; a server may have repeated the token."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text.replace(token, "(token)") if token else text


def not_a_hub(endpoint: str, why: str) -> OllamakeError:
    """Return the error of a server that speaks something else."""
    host = urlsplit(endpoint).netloc.rpartition("@")[2] or "HF_ENDPOINT"
    return OllamakeError(
        f"{host} does not answer as the Hugging Face hub does: {why}. Check HF_ENDPOINT (usually unset), and whether"
        " a login page of the network answers in its place."
    )


def host_of(response: httpx2.Response) -> str:
    """Return who answered, without a user's name and password."""
    return response.url.netloc.decode("ascii").rpartition("@")[2]


def certificate_fault(error: BaseException | None) -> str | None:
    """Return what is wrong with a certificate where that is behind an error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None


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
