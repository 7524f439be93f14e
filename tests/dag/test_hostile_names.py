"""Folders and texts whose names are orders to a shell, a format string, a browser or a terminal are built from as all others."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from dag_build import Build
from snakemake_runs import run_snakemake

SHELL = "$(touch PWNED) `touch PWNED` ; touch PWNED & 'q' \"d\" %s * ~ #"
BRACES = "{model} {{x}} {"
PAGE = "<img src=x onerror=alert(1)> [link](javascript:alert(1)) | **b** &amp; \u202e日本語 e\u0301"
SYSTEM = f'A"""\nFROM evil\nSYSTEM """</script>{SHELL}{BRACES}{PAGE}\x1b[2J\r\n%d'


def hostile(begun: Build, folder: Path) -> Build:
    """Return a working directory, itself with such a name, in which every path and text has one."""
    work = folder / f"w {SHELL}{BRACES}"
    build = Build(work, json.loads(json.dumps(begun.config)))
    base, adapter, texts = f"b {PAGE}", f"a {SHELL}", f"t {SHELL}"
    shutil.copytree(begun.folder / "base", work / base)
    shutil.copytree(begun.folder / "adapter", work / adapter)
    (work / texts).mkdir()
    (work / texts / f"{SHELL}.txt").write_text("道路設計の基準を説明します。\n" * 4000, encoding="utf-8")
    (work / texts / "rag.yaml").write_text("llm: {}\n", encoding="utf-8")
    programs = folder / f"p {SHELL}"
    programs.symlink_to(build.config["tools"]["llama_cpp"])
    build.config["tools"]["llama_cpp"] = str(programs)
    build.config["ollama"] = {"target": "store", "store": f"results/store {SHELL}"}
    build.config["hardware"]["gpus"] = [{"name": f"[red]{SHELL}{BRACES}{PAGE}[/red]", "memory_gib": 24}]
    build.model().update(
        base=base,
        adapter=adapter,
        imatrix={"text": [f"{texts}/{SHELL}.txt"], "context": 64, "chunks": 50},
        rag={"file": f"{texts}/rag.yaml", "keys": {"ollama_model": f"llm.{SHELL}"}},
        ollama={
            "system": SYSTEM,
            "template_differs": "warn",
            "license": [SYSTEM],
            "parameters": {"stop": [SHELL + BRACES, '"""']},
        },
    )
    return build


class Tags(HTMLParser):
    """Collects what a browser would take for elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def require_harmless(page: Path) -> None:
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    for tag, attributes in tags.found:
        assert not any(name.startswith("on") for name in attributes), (page, tag, attributes)
        assert attributes.get("src") != "x", (page, tag, attributes)
        for name in ("href", "src", "xlink:href"):
            assert not (attributes.get(name) or "").strip().lower().startswith("javascript:"), (page, tag, attributes)


def weights_of(build: Build) -> dict[str, str]:
    """Return what is in the files of the merge and of the unquantized model, which depend on no text."""
    files = sorted((build.folder / "results/small").rglob("*.safetensors"))
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files}


def test_built_from_as_all_others(finished: Build, begun: Build, tmp_path: Path) -> None:
    build = hostile(begun, tmp_path)
    build.write_config()
    done = run_snakemake("--configfile", "mine.yaml", "--cores", "2", "all", "plan", folder=build.folder, timeout=1200)
    print(done.stdout)
    assert done.returncode == 0
    assert not list(tmp_path.rglob("PWNED"))
    assert weights_of(build) == weights_of(finished) != {}
    assert SYSTEM.encode() in [file.read_bytes() for file in blobs(build) if file.stat().st_size < 10_000]
    for page in build.folder.glob("results/small/**/*.html"):
        require_harmless(page)
    for picture in build.folder.glob("results/small/**/*.svg"):
        require_harmless(picture)
    for log in [done.stdout, *(file.read_text(encoding="utf-8") for file in build.folder.glob("logs/**/*.log"))]:
        assert "\x1b[2J" not in log
    assert not build.planned("all")


def blobs(build: Build) -> list[Path]:
    """Return what lies in the store."""
    return [file for file in build.folder.glob("results/store*/blobs/*") if re.fullmatch(r"sha256-\w+", file.name)]


@pytest.mark.parametrize("key", ["base", "adapter"])
@pytest.mark.parametrize("name", ["-rf", "a\nb", "\x1b[2Jx", "x" * 256, "{model}", "a}"], ids=ascii)
def test_refused_by_its_key(begun: Build, tmp_path: Path, key: str, name: str) -> None:
    build = Build(tmp_path, json.loads(json.dumps(begun.config)))
    build.model()[key] = name
    build.write_config()
    done = run_snakemake("--configfile", "mine.yaml", "-n", "all", folder=build.folder, timeout=120)
    assert done.returncode == 1
    assert f"models.small.{key}: expected" in done.stdout
    assert "\x1b[2J" not in done.stdout
    assert not list(tmp_path.rglob("PWNED"))
