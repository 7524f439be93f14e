"""Compile one program of llama.cpp from the fetched source.

    python scripts/build_llama_cpp.py --source resources/llama.cpp/0.3.36/source --program llama-quantize \\
        --output resources/llama.cpp/0.3.36/bin/llama-quantize --record resources/llama.cpp/0.3.36/bin/llama-quantize.json
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from filelock import FileLock

from ollamake.atomic_write import temporary_beside, write_json, write_text
from ollamake.errors import run
from ollamake.file_digest import sha256_of
from ollamake.licenses import NAME, license_texts
from ollamake.llama_cpp_source import VERSION, compile_program, usable_cores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--program", required=True, help="the program, which is also the CMake target")
    parser.add_argument("--output", type=Path, required=True, help="where the program goes")
    parser.add_argument("--record", type=Path, required=True, help="where its version and sha256 are written")
    parser.add_argument(
        "--jobs", type=int, default=0, help="compilers at once (0: as many as this process may use cores)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    build = args.source.parent / "build"
    build.mkdir(parents=True, exist_ok=True)
    # Programs share the compiled libraries, hence the folder: one build at a time in it.
    with FileLock(build / ".lock"):
        program = compile_program(args.source, build, args.program, args.jobs or usable_cores())
        with temporary_beside(args.output) as temporary:
            shutil.copy(program, temporary)
    # The program may be copied elsewhere: what its licences ask for is beside it.
    write_text(args.output.parent / NAME, license_texts(args.source))
    write_json(args.record, {"program": args.program, "version": VERSION, "sha256": sha256_of(args.output)})


if __name__ == "__main__":
    run(main)
