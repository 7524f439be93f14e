"""Results that are newer than the clock, because it was set back: without this they would be newer than what is changed now.

Snakemake asks whether an input is newer than an output, and only then whether it is another one. A result with a time that
is still to come is older than nothing, so that a change would go unseen until the clock has caught up.
"""

from __future__ import annotations

import os
from pathlib import Path

SECONDS_AHEAD = 5
"""By which the clock of a file server may differ from this machine's."""


def bring_back(folder: Path, now: float) -> list[Path]:
    """Give files below a folder that are newer than ``now`` times of long ago, in the order of their own; return them.

    Then each of their inputs is newer, and compared by content.
    """
    late = []
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.is_file() and not path.is_symlink() and status.st_mtime > now + SECONDS_AHEAD:
            late.append((status.st_mtime_ns, path))
    late.sort()
    for seconds, (_, path) in enumerate(late, start=1):
        os.utime(path, (now, seconds))
    return [path for _, path in late]
