"""The one error a user may see, and the frame in which every entry point runs."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable

from ollamake.end_with_run import end_with_run
from ollamake.termination import interruptible


class OllamakeError(Exception):
    """Something the user can mend.

    The message says what was expected, what was found, where (configuration key or file) and what to do.
    """


_ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys or cannot show, or what makes it show text in another order than it is in; but tabs and ends of lines."""


def printable(text: str) -> str:
    """Return a text that may have names and texts from foreign files in it, with what is an order to terminals escaped."""
    return _ORDERS.sub(lambda order: order[0].encode("unicode_escape").decode("ascii"), text)


class _PrintableFormatter(logging.Formatter):
    """Writes log lines that do nothing to the terminal but to stand there."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def run(main: Callable[[], None]) -> None:
    """Run an entry point: log to stderr, end an :class:`OllamakeError` in one message and exit code 1.

    So does what the machine cannot give: room on the disk, memory, files. Any other exception keeps its traceback: it is a
    defect of ours and belongs in the log. SIGTERM is an interruption, too.
    """
    # It raises errors of this module, and could not be read any more when there are too many open files.
    from ollamake.machine_limits import limit_met

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # They report every request at INFO, with addresses that may be signed for this user; what was asked is ours to say.
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        with interruptible():
            end_with_run()
            main()
    except OllamakeError as error:
        sys.exit(f"error: {printable(str(error))}")
    except Exception as error:
        message = limit_met(error) or _file_of_the_command_line(error)
        if message is None:
            raise
        sys.exit(f"error: {printable(message)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished files are kept, run the same command again to go on")


def _file_of_the_command_line(error: Exception) -> str | None:
    """Return what is wrong with a file that whoever called has named; None of any other, which is ours to mend."""
    if not isinstance(error, OSError) or error.filename is None or str(error.filename) not in sys.argv[1:]:
        return None
    return f"{error.filename}, of the command line: {error.strerror}"
