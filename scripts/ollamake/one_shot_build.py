"""One command from an adapter to registered models: the arguments become a configuration, and Snakemake builds it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ollamake.atomic_write import write_text
from ollamake.configuration import read_configuration
from ollamake.errors import OllamakeError
from ollamake.llama_cpp_source import VERSION
from ollamake.one_shot_base import find_base
from ollamake.one_shot_configuration import Asked, built_programs, configured, differences
from ollamake.one_shot_file import ConfigurationFile, read_file, rendered
from ollamake.one_shot_run import alone_in, run_dry, run_snakemake
from ollamake.one_shot_spelling import quantizations_of
from ollamake.source_files import source_files

log = logging.getLogger("ollamake")


@dataclass(frozen=True)
class Request:
    """The command line, as it was given."""

    lora_path: str
    output_dir: str
    quantization: list[str]
    base: str | None = None
    name: str | None = None
    system: str | None = None
    target: str | None = None
    ollama_host: str | None = None
    plan: bool = False
    dry_run: bool = False
    cores: str = "all"


def build(request: Request, repository: Path) -> int:
    """Write or update OUTPUT_DIR/config.yaml, run Snakemake, and return its exit code; a dry run writes nothing.

    Raises OllamakeError for what can be said before Snakemake starts, and if another build is at work there.
    """
    folder = _folder(request.output_dir)
    if folder.exists() and not folder.is_dir():
        raise OllamakeError(f"--output-dir: {folder} is a file. Give a folder, which may not be there yet.")
    file = read_file(folder / "config.yaml")
    content, key = configuration_of(request, file, repository)
    text = ""
    if file is None or file.content != content:
        if file is not None and not file.unedited:
            raise _edited(file, content)
        read_configuration(content, repository / "config/schemas/config.schema.yaml")
        text = rendered(content, repository / "Snakefile")
    if request.dry_run:
        return _dry_run(request, repository, folder, text)
    with alone_in(folder) as turn:
        # Jobs of a build that is under way read the configuration, too.
        if text:
            write_text(folder / "config.yaml", text)
        how = "as it is" if not text else "updated" if file else "written"
        log.info("configuration: %s (%s)", folder / "config.yaml", how)
        code = run_snakemake(_arguments(request, repository, folder, folder / "config.yaml"), folder, turn)
    if code == 0:
        page = "plan.md" if request.plan else "overview.html"
        log.info("Everything is in %s, which paths above are relative to; see results/%s/%s there.", folder, key, page)
    return code


def configuration_of(request: Request, file: ConfigurationFile | None, repository: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration that a request asks for, where ``file`` is there already, and the key of its model."""
    for argument, value in vars(request).items():
        _require_utf8(f"--{argument.replace('_', '-')}", value)
    folder, adapter = _folder(request.output_dir), _folder(request.lora_path)
    source_files("adapter", str(adapter), "--lora-path")
    quantizations, checkpoints, said = quantizations_of(request.quantization)
    asked = Asked(
        adapter=str(adapter),
        quantizations=quantizations,
        checkpoints=checkpoints,
        name=request.name,
        system=request.system,
        target=request.target,
        host=request.ollama_host,
    )
    there = file.content if file else None
    if there is None or request.base is not None:
        asked = replace(asked, base=_base(request, adapter))
    content, key = configured(there, asked, folder)
    base = content["models"][key].get("base")
    moved = isinstance(base, str) and Path(base).is_absolute() and not Path(base).is_dir()
    if asked.base is None and moved and file is not None and file.unedited:
        # Its folder was moved; of an edited file the workflow says what is not there.
        content, key = configured(there, replace(asked, base=_base(request, adapter)), folder)
    if there is None:
        content |= built_programs(repository / "resources/llama.cpp" / VERSION)
    for sentence in said:
        log.info("%s", sentence)
    return content, key


def _base(request: Request, adapter: Path) -> str:
    found = find_base(adapter, request.base)
    log.info("base: %s", found.said)
    return found.place


def _edited(file: ConfigurationFile, content: Mapping[str, Any]) -> OllamakeError:
    said = "\n    ".join(differences(file.content, content))
    return OllamakeError(
        f"{file.path} was edited, so it is not changed by this script, but the arguments say something else:\n    {said}\n"
        "  Change it there and leave these arguments out, or move the file away to have it written anew."
    )


def _dry_run(request: Request, repository: Path, folder: Path, text: str) -> int:
    """Show what would be built; ``text`` is the configuration that would be written, empty if it is there as it is.

    Where there is no folder yet, it is looked from an empty one; else Snakemake keeps its notes in .snakemake, as always.
    """
    with tempfile.TemporaryDirectory(prefix="ollamake-") as temporary:
        file = folder / "config.yaml"
        if text:
            log.info("configuration: %s would be %s:\n\n%s", file, "updated" if file.exists() else "written", text)
            file = Path(temporary) / "config.yaml"
            file.write_text(text, encoding="utf-8")
        place = folder if folder.is_dir() else Path(temporary)
        return run_dry(_arguments(request, repository, place, file), place)


def _arguments(request: Request, repository: Path, folder: Path, file: Path) -> list[str]:
    """Return Snakemake's arguments; --configfile takes every word behind it for a file, so it comes last."""
    profile = repository / "profiles/default"
    places = [
        "--snakefile",
        str(repository / "Snakefile"),
        "--directory",
        str(folder),
        "--workflow-profile",
        str(profile),
    ]
    return [*places, "--cores", request.cores, "plan" if request.plan else "all", "--configfile", str(file)]


def _folder(path: str) -> Path:
    """Return a path as an absolute one; a link stays what it is, since it may be the name that is meant."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _require_utf8(argument: str, value: object) -> None:
    for text in value if isinstance(value, list) else [value]:
        try:
            str(text).encode("utf-8")
        except UnicodeEncodeError:
            raise OllamakeError(
                f"{argument}: {text!r} has bytes that are not UTF-8, which YAML cannot hold. Rename the folder, or set a UTF-8"
                " locale (LANG=C.UTF-8)."
            ) from None
