"""The one error a user may see, and the frame in which every entry point runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from ollamake.end_with_run import end_with_run
from ollamake.termination import interruptible


class OllamakeError(Exception):
    """Something the user can mend.

    The message says what was expected, what was found, where (configuration key or file) and what to do.
    """


def run(main: Callable[[], None]) -> None:
    """Run an entry point: log to stderr, end an :class:`OllamakeError` in one message and exit code 1.

    So does what the machine cannot give: room on the disk, memory, files. Any other exception keeps its traceback: it is a
    defect of ours and belongs in the log. SIGTERM is an interruption, too.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    # They report every request at INFO, with addresses that may be signed for this user; what was asked is ours to say.
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        with interruptible():
            end_with_run()
            main()
    except OllamakeError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        from ollamake.machine_limits import limit_met  # which raises errors of this module

        if (message := limit_met(error)) is None:
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished files are kept, run the same command again to go on")
