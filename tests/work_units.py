"""How the tests are handed out to processes: what shares expensive fixtures stays together.

A unit of work goes to one process as a whole. Units of tests/unit come first, then those of tests/dag, tests/faults and
tests/e2e: what takes minutes to compile is compiled meanwhile, and no test sees the Ollama that tests of e2e put on PATH unless
it wants to.
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_KINDS = re.compile(r"the real [\d.]+|a stand-in for [\d.]+|(?<=[\[-])(?:server|store)(?=[]-])")
"""What session fixtures of tests/e2e are parametrized with: each has servers of its own."""
_LONGEST_FIRST = ("test_demo.py", "test_drift_on_server.py", "test_registration_faults.py")
_FOLDERS = ("tests/unit/", "tests/dag/", "tests/faults/", "tests/e2e/")


class WorkUnits(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out units in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """Return the name of a test's unit of work."""
    file, _, test = nodeid.partition("::")
    if file.startswith("tests/dag/") and test.startswith("test_code"):
        return "tests/dag/ with a copy of the code"
    if file.startswith("tests/faults/"):
        return "tests/faults/ with one undisturbed build"
    if file == "tests/dag/test_reruns.py":
        # Each begins with a copy of the finished build, which every process makes once for its first.
        return nodeid
    if file.startswith("tests/e2e/") and (kind := _KINDS.search(test)):
        return f"{file} with {kind[0]}"
    return file


def position(nodeid: str) -> tuple[int, ...]:
    """Return what tests are sorted by before they are handed out."""
    unit = unit_of(nodeid)
    folder = next((place for place, name in enumerate(_FOLDERS) if unit.startswith(name)), len(_FOLDERS))
    file, _, kind = unit.partition(" with ")
    if folder < len(_FOLDERS) - 1 or not kind:
        return (folder, 0, 0)
    # A real Ollama is compiled longest; and the last units should be short ones.
    name = file.rpartition("/")[2]
    return (folder, 1, _LONGEST_FIRST.index(name) if name in _LONGEST_FIRST else len(_LONGEST_FIRST))
