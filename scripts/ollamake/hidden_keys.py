"""Keys and passwords in a text that is shown or kept: what stands in a user's own files may have them beside what is changed."""

from __future__ import annotations

import os
import re

from ollamake.errors import OllamakeError

HIDDEN = "***"

_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
_BY_NAME = re.compile(
    r"""(?ix) ( [\w-]* (?: api[-_]?key | access[-_]?key | token(?!s|i) | secret | passw(?:or)?d | passphrase | credential
                       | authorization ) [\w-]* ["']? \s* [:=] \s* )
        (?: "[^"]*" | '[^']*' | [^\s,}\]#"'][^,}\]\n]* )"""
)
"""A name that says so, and its value, up to what ends it in YAML's and JSON's lists and tables."""
_BY_FORM = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[\w-]{12,}|AKIA[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{12,})")


def without_keys(text: str) -> str:
    """Return a text with ``***`` in place of what is a key or a password by its name, its form or its place in an address."""
    text = _IN_ADDRESS.sub(HIDDEN, text)
    text = _BY_NAME.sub(lambda found: found[1] + HIDDEN, text)
    return _BY_FORM.sub(HIDDEN, text)


def host_without_key(host: str | None) -> str | None:
    """Return the address of a server as it is given. Raises OllamakeError for one with a password in it, which is not shown.

    It would be in records and in lists of processes, and Ollama's clients leave it out of what they send.
    """
    if host is not None and "@" in host:
        raise OllamakeError(
            "ollama.host, or the environment variable OLLAMA_HOST, has a name or a password in the address (before an @). It"
            " would be in records and in lists of processes, and Ollama's clients do not send it. Give the address alone; a key"
            " belongs in OLLAMA_API_KEY."
        )
    return host


def require_no_key(host: str | None) -> None:
    """Raise OllamakeError for a password in the address that a client takes: this one, else OLLAMA_HOST's."""
    host_without_key(host or os.environ.get("OLLAMA_HOST"))
