"""Reads everything that a build has written, read and registered, and says what is not as it was: nothing is changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ollamake.create_request import request_of_marker
from ollamake.damage import DamagedFile, adopt_command, rebuild_command, replaced
from ollamake.errors import OllamakeError
from ollamake.hub_content import Content
from ollamake.ollama_store import OllamaStore
from ollamake.progress import progress_bar
from ollamake.read_files import ReadFile, built_programs, changed_sources, fetched_files, users_files
from ollamake.record_seal import read_record
from ollamake.registration import marker_differences
from ollamake.verification import store_differences
from ollamake.written_files import KnownFile, known_files, sealed_files

log = logging.getLogger("ollamake")


@dataclass
class Findings:
    """What is wrong with a build, and what mends it."""

    lines: list[str] = field(default_factory=list)
    rebuild: list[Path] = field(default_factory=list)
    """Outputs of jobs."""
    remove: list[Path] = field(default_factory=list)
    """Files that go with them and are made by no job of that name: blobs of a store."""
    adopt: list[Path] = field(default_factory=list)
    """Files of the user's that have changed with size and time kept."""
    register: bool = False

    def add(self, other: Findings) -> None:
        """Take over what was found elsewhere."""
        self.lines += [line for line in other.lines if line not in self.lines]  # models may share a base
        self.rebuild += other.rebuild
        self.remove += other.remove
        self.adopt += other.adopt
        self.register |= other.register

    def message(self) -> str:
        """Return all of it as one message that ends with the commands that mend it."""
        lines = ["not all is as it was built:", *(f"  {line}" for line in self.lines), "Nothing has been changed."]
        if self.rebuild or self.remove:
            lines += ["To have what is damaged made again:", f"  {rebuild_command(self.rebuild, self.remove)}"]
        if self.adopt:
            lines += [
                "A file of yours that is damaged: put the original back. If its new content is meant:",
                f"  {adopt_command(self.adopt)}",
            ]
        if self.register:
            lines += [
                "`snakemake --cores 1 registered` registers what was deleted, renamed or replaced; for a missing blob add"
                " `--forcerun register`; a damaged one of a server has to be deleted before. Of a silent server nothing is"
                " known."
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Known:
    """A file with what it must be, and how a difference is told."""

    path: Path
    content: Content
    tell: Callable[[Path, str], Findings]


class BuildCheck:
    """Looks at models one after the other; a file that several have in common is read once."""

    def __init__(self) -> None:
        self._faults: dict[tuple[int, int, Content], str | None] = {}

    def model(self, results: Path, markers: Sequence[Path]) -> Findings | None:
        """Return what is wrong with a model, of whose folder the name is its own; None where nothing is there yet.

        ``markers``: where its registrations are told of, as far as they are there.
        """
        found, registered = Findings(), []
        for marker in markers:
            if marker.exists():
                differences, blobs, name = _registration(marker)
                found.add(differences)
                registered += [*blobs]
                if not differences.lines:
                    log.info("%s: as registered", name)
            else:
                log.info("%s: not registered yet", marker)
        written = list(known_files(results))
        whole, unknown, damaged = sealed_files(results, {file.path for file in written})
        for damage in damaged:
            found.add(_damaged(damage.path, damage.what, damage.targets))
        read = [*users_files(results), *fetched_files_or_none(results)]
        files = [*map(_written, written), *map(_read, read), *registered]
        if not (files or whole or unknown or damaged or found.lines):
            return None
        count, size = self._compare(files, results.name, found)
        if not found.lines:
            log.info(
                "%s: as built: %d files by their sha256 (%.2f GB read), %d by their seal%s",
                *(results.name, count, size / 1e9, len(whole)),
                f"; not sealed, so of an earlier version or another program: {_some(unknown)}" if unknown else "",
            )
        return found

    def programs(self, folder: Path) -> Findings:
        """Return what is wrong with llama.cpp as it was unpacked and built."""
        found = Findings()
        for record, what in changed_sources(folder):
            found.add(Findings([f"{record}: {what}"], rebuild=[record]))
        files = list(map(_read, built_programs(folder)))
        if files:
            count, size = self._compare(files, folder.name, found)
            if not found.lines:
                log.info("%s: as built: %d programs (%.2f GB read)", folder.name, count, size / 1e9)
        return found

    def _compare(self, files: Iterable[_Known], name: str, found: Findings) -> tuple[int, int]:
        """Read files, add what is wrong to ``found``, and return how many there are and how many bytes were read."""
        wanted = list({(file.path, file.content): file for file in files}.values())
        new = [file for file in wanted if _key(file) not in self._faults]
        size = sum({_key(file): file.path.stat().st_size for file in new}.values())
        with progress_bar(size, f"reading {name}") as progress:
            for file in wanted:
                key = _key(file)
                if key not in self._faults:
                    try:
                        self._faults[key] = file.content.fault(file.path, progress.update)
                    except OSError as error:
                        self._faults[key] = f"it cannot be read ({error})"
                if (fault := self._faults[key]) is not None:
                    found.add(file.tell(file.path, fault))
        return len(wanted), size


def fetched_files_or_none(results: Path) -> list[ReadFile]:
    """Return the files that a model has from the hub; none where its pins are damaged, which is told of the pins themselves."""
    try:
        return list(fetched_files(results))
    except OllamakeError:
        return []


def _key(file: _Known) -> tuple[int, int, Content]:
    status = file.path.stat()
    return status.st_dev, status.st_ino, file.content


def _written(file: KnownFile) -> _Known:
    return _Known(file.path, file.content, lambda path, fault: _damaged(path, fault, file.targets))


def _read(file: ReadFile) -> _Known:
    def tell(path: Path, fault: str) -> Findings:
        if file.made_here:
            return _damaged(path, fault, (path,))
        return Findings([f"{path}: {replaced(fault)}"], adopt=[path])

    return _Known(file.path, file.content, tell)


def _damaged(path: Path, fault: str, targets: Sequence[Path]) -> Findings:
    if path.is_symlink() and "resources" not in path.parts:
        fault += f"; it is a link to {path.readlink()}, which is Ollama's: pull or register that model again"
    return Findings([f"{path}: {fault}"], rebuild=list(targets))


def _registration(marker_file: Path) -> tuple[Findings, list[_Known], str]:
    """Return how a registered model differs from its marker, the blobs that have to be read, and its name."""
    try:
        marker = read_record(marker_file)
        request, weights = request_of_marker(marker)
        name = f"{marker['name']} ({marker.get('host') or marker['store']})"
        if marker["target"] == "store":
            store = OllamaStore(Path(marker["store"]))
            differences = store_differences(store, request, weights, marker["manifest_digest"])
            blobs = _blobs(store, marker["name"])
        else:
            differences, blobs = marker_differences(marker, request, weights), []
    except DamagedFile:
        return Findings(), [], str(marker_file)  # told of the file itself
    except OllamakeError as error:
        return Findings([f"{marker_file}: {error}"], register=True), [], str(marker_file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{marker_file}: the marker cannot be read ({error!r})"
        return Findings([what], rebuild=[marker_file]), [], str(marker_file)
    return Findings([f"{name}: {line}" for line in differences], register=bool(differences)), blobs, name


def _blobs(store: OllamaStore, name: str) -> list[_Known]:
    """Return the blobs of a model that are there; a blob's name is its digest."""

    def tell(path: Path, fault: str) -> Findings:
        return Findings([f"{path}: the blob has other bytes than its name says: {fault}"], remove=[path])

    try:
        manifest = store.read(name)
        layers = [*manifest["layers"], manifest["config"]]
        contents = [Content(layer["size"], "sha256", layer["digest"].removeprefix("sha256:")) for layer in layers]
    except (OllamakeError, OSError, ValueError, KeyError, TypeError):
        return []  # told of the manifest
    return [_Known(file, one, tell) for one in contents if (file := store.blob_file(one.digest)).exists()]


def _some(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
