"""Write the parts of the documentation that follow from the code, or check that they are current.

python tests/generate_docs.py            write docs/rulegraph.svg and the table of keys in config/README.md
python tests/generate_docs.py --check    end with an error if they are not current
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rulegraph_drawing import parse_rulegraph, svg

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- generated from schemas/config.schema.yaml -->\n", "<!-- end of generated -->\n"


def rulegraph() -> str:
    """Return the drawing of what `snakemake --rulegraph all` prints for the shipped configuration."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--", "all"]
    # With a llama-quantize on PATH the graph has no rule that builds it; the picture shows a machine without.
    folders = [
        folder for folder in os.environ["PATH"].split(os.pathsep) if not shutil.which("llama-quantize", path=folder)
    ]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return svg(parse_rulegraph(done.stdout))


def keys(part: dict[str, Any], root: dict[str, Any], path: str = "") -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, description) of every key of a schema, in its order."""
    rows: list[tuple[str, str, str, str]] = []
    for name, value in part.get("properties", {}).items():
        key = f"{path}.{name}" if path else name
        resolved = root["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
        rows.append((key, _type(resolved), _default(value, part, name), " ".join(value.get("description", "").split())))
        if "$ref" not in value:
            rows += keys(resolved, root, key)
        nested = resolved.get("additionalProperties")
        if isinstance(nested, dict) and "$ref" in nested:
            rows += keys(root["$defs"][nested["$ref"].rpartition("/")[2]], root, f"{key}.NAME")
    return rows


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " \\| ".join(f"`{choice}`" for choice in value["enum"])
    kinds = value.get("type", "object")
    names = {
        "object": "keys",
        "array": "list",
        "string": "text",
        "integer": "whole number",
        "boolean": "`true` \\| `false`",
    }
    return " \\| ".join(names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _default(value: dict[str, Any], parent: dict[str, Any], name: str) -> str:
    if name in parent.get("required", []) or "default" not in value:
        return "required"
    return "" if value["default"] == {} else f"`{json.dumps(value['default'])}`"


def table() -> str:
    """Return the table of keys as Markdown."""
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text(encoding="utf-8"))
    rows = [f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in keys(schema, schema)]
    return "\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def documents() -> dict[Path, str]:
    """Return every generated file as it should be."""
    readme = ROOT / "config/README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {readme: f"{before}{BEGIN}{table()}{END}{after}", ROOT / "docs/rulegraph.svg": rulegraph()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is not current")
    check = parser.parse_args().check
    stale = [
        file for file, text in documents().items() if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    if check and stale:
        names = ", ".join(str(file.relative_to(ROOT)) for file in stale)
        sys.exit(f"not current: {names}; run `python tests/generate_docs.py` and commit")
    for file in stale:
        file.parent.mkdir(exist_ok=True)
        file.write_text(documents()[file], encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
