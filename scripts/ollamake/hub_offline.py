"""What to say, and to do, where the hub does not answer or no longer has what was pinned."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from ollamake.errors import OllamakeError


def not_here(where: str, what: str, reason: Exception) -> OllamakeError:
    """Return the error for what neither the hub gives now nor the cache has; ``reason`` says what is with the hub."""
    mend = "unset it" if constants.HF_HUB_OFFLINE else "run again when the hub answers"
    return OllamakeError(
        f"{where}: {str(reason).rstrip('.')}. The local cache of downloads ({Path(constants.HF_HUB_CACHE)}) does not have"
        f" {what} either: {mend}, and what is here already is not fetched again."
    )


def revision_gone(repo_id: str, commit: str) -> OllamakeError:
    """Return the error for a pinned commit that the hub no longer has."""
    return OllamakeError(
        f"{repo_id} no longer has the commit {commit[:12]}, which was pinned: its history was rewritten. Run"
        " `snakemake --forcerun pin_sources` with your other options to pin what it has now."
    )


def not_pinned(reference: str, reason: str, missing: str | None) -> OllamakeError:
    """Return the error for a reference that is pinned neither by the hub nor from the cache, which has not ``missing``."""
    cache = (
        "" if missing is None else f" The cache of huggingface_hub ({constants.HF_HUB_CACHE}) does not have {missing}."
    )
    again = "Unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "Run again when the hub answers"
    return OllamakeError(
        f"{reference} is to be fetched from the hub, and it cannot be told what that is now: {reason.rstrip('.')}.{cache}"
        f" {again}, or give a model's folder."
    )
