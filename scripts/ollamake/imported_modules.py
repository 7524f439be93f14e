"""Which library modules a script really uses, so that its rule runs again when one of them changes, and only then.

The import statements are read, not run: the closure over ``from ollamake.x import ...`` and ``import ollamake.x``,
wherever in a file they stand.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

PACKAGE = "ollamake"

_STATEMENT = re.compile(rf"^[ \t]*((?:from|import)[ \t]+{PACKAGE}\b(?:[^\n(]*\([^)]*\)|[^\n]*))", re.MULTILINE)
"""An import of the package, with its names in parentheses if they are. Only these are parsed: to parse all of the library takes
half a second each time the workflow is read."""


def modules_used_by(script: Path) -> list[Path]:
    """Return the files of the library that ``script`` imports, directly or through others, sorted.

    ``script`` lies beside the package's folder. Raises FileNotFoundError for an import of a module that does not exist.
    """
    package = script.parent / PACKAGE
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        for name in _imports(waiting.pop()):
            module = package / f"{name}.py"
            if module not in found:
                found.add(module)
                waiting.append(module)
    return sorted(found)


@cache
def _imports(file: Path) -> frozenset[str]:
    statements = "\n".join(_STATEMENT.findall(file.read_text(encoding="utf-8")))
    names: set[str] = set()
    for node in ast.parse(statements, filename=str(file)).body:
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            dotted = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dotted = [node.module or ""]
        else:
            continue
        names.update(name.split(".")[1] for name in dotted if name.startswith(f"{PACKAGE}."))
    return frozenset(names) - {"__version__"}
