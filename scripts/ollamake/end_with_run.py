"""A job ends when the Snakemake that started it does, or the shell between them: else it would go on unseen.

A killed Snakemake leaves its jobs running. What they finish then is whole, but nobody knows any more what it was made from:
it could take the place of what a later run with another configuration has made.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

RUN = "OLLAMAKE_RUN"
"""Environment variable of jobs: host and process id of their Snakemake, and the folder in which it works."""


def end_with_run() -> None:
    """In a job, let this process get SIGTERM when its Snakemake or its shell is gone.

    Needs Linux 5.3 (pidfd_open); elsewhere nothing happens, and the next run ends what is left (left_jobs).
    """
    host, _, run = os.environ.get(RUN, "").partition(":")
    if host != socket.gethostname() or not hasattr(os, "pidfd_open"):
        return
    try:
        ends = [os.pidfd_open(process) for process in (int(run.partition(":")[0]), os.getppid())]
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGTERM)
    except OSError:
        return  # This kernel, or a sandbox, does not have it.
    else:
        threading.Thread(target=_wait_for_one, args=(ends,), daemon=True).start()


def _wait_for_one(ends: list[int]) -> None:
    """Wait for the end of one process; its descriptor becomes readable then (pidfd_open(2))."""
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
