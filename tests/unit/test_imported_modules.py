"""The library files that a rule depends on are those its script imports, through others too."""

import ast
from pathlib import Path

import pytest

from ollamake.imported_modules import _imports as imports_of
from ollamake.imported_modules import modules_used_by

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    package = tmp_path / "ollamake"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from ollamake.b import x\nimport json\n")
    (package / "b.py").write_text("def f():\n    import ollamake.c\n")
    (package / "c.py").write_text("from ollamake import a\n")
    (package / "unused.py").write_text("")
    return tmp_path


def test_closure_includes_indirect_nested_and_circular_imports(tree: Path) -> None:
    script = tree / "run.py"
    script.write_text("from ollamake.a import y\n")
    assert [file.name for file in modules_used_by(script)] == ["a.py", "b.py", "c.py"]


def test_script_without_library(tree: Path) -> None:
    script = tree / "run.py"
    script.write_text("import json\nfrom ollamake import __version__\n")
    assert modules_used_by(script) == []


def test_every_entry_point_imports_modules_that_exist() -> None:
    scripts = sorted(SCRIPTS.glob("*.py"))
    assert scripts
    for script in scripts:
        modules = modules_used_by(script)
        assert SCRIPTS / "ollamake" / "errors.py" in modules
        assert all(module.is_file() for module in modules)


def test_a_change_of_the_registration_does_not_reach_the_merge() -> None:
    names = {file.stem for file in modules_used_by(SCRIPTS / "merge_shard.py")}
    assert names.isdisjoint({"registration", "ollama_server", "ollama_store", "modelfile", "gguf_quantization"})


def test_no_import_is_overlooked() -> None:
    """What the statements say is what Python's own parser finds in each file."""
    library = sorted((SCRIPTS / "ollamake").glob("*.py"))
    assert len(library) > 100
    for file in (*library, *SCRIPTS.glob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        named |= {f"ollamake.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom)
                  and node.module == "ollamake" for alias in node.names}  # fmt: skip
        direct = {name.split(".")[1] for name in named if name.startswith("ollamake.")} - {"__version__"}
        assert imports_of(file) == direct, file
