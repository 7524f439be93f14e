"""What tests of downloads share: patience in a hurry, a cache as it is, files of a repository, and what a folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from huggingface_hub import constants, snapshot_download
from snakemake_runs import REPOSITORY
from stand_in.hub import HubStandIn, hub_stand_in
from stand_in.hub_repository import Model, blob

from ollamake.hub_download import HubFile
from ollamake.hub_requests import Patience, _content

HURRIED = Patience(timeout=5.0, tries=3, first_pause=0.01, longest_pause=2.0)


def nobody() -> str:
    """Return the address of a hub that was there."""
    with hub_stand_in() as gone:
        return gone.address


def file_of(model: Model, name: str, repo_id: str = "org/model") -> HubFile:
    """Return a file as the hub's list of files has it."""
    content = _content(blob(name, model.files[name]))
    assert content is not None
    return HubFile(repo_id, name, content)


def download_to_cache(hub: HubStandIn, repo_id: str = "org/model", **options: Any) -> Path:
    """Let huggingface_hub download a repository into its cache; return the cache. Forget that it asked."""
    snapshot_download(repo_id, endpoint=hub.address, **options)
    hub.requests.clear()
    return Path(constants.HF_HUB_CACHE)


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all that is in a folder: mode, time of change and content (or target) of each."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def run_on_hub(name: str, hub: HubStandIn, folder: Path, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run one of the scripts in a folder, as a user of this hub would."""
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / name, *arguments],
        env={**os.environ, **hub.environment(folder / "home"), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
