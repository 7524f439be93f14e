"""Fetch the pinned source of llama.cpp, unpack it and change what ollamake needs changed.

    python scripts/fetch_llama_cpp.py --output-dir resources/llama.cpp/0.3.36

writes OUTPUT_DIR/source/ (llama.cpp's tree) and OUTPUT_DIR/source.json (what it is, and what was changed).
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path

from ollamake.atomic_write import write_json
from ollamake.errors import run
from ollamake.file_digest import tree_sha256
from ollamake.llama_cpp_patch import apply_patch
from ollamake.llama_cpp_source import PACKAGE, SDIST_SHA256, VERSION, fetch_sdist, require_pinned, unpack


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the source tree and its record")
    parser.add_argument("--sdist", default="", help="the source distribution, where none is to be downloaded")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix=".fetch-") as folder:
        if not args.sdist:
            logging.info("downloading %s %s", PACKAGE, VERSION)
            sdist = fetch_sdist(Path(folder))
        else:
            sdist = Path(args.sdist).expanduser()
            require_pinned(sdist, "tools.llama_cpp_sdist names another file")
        files = unpack(sdist, Path(folder) / "source")
        changes = apply_patch(Path(folder) / "source")
        shutil.rmtree(args.output_dir / "source", ignore_errors=True)
        (Path(folder) / "source").rename(args.output_dir / "source")
    os.sync()  # The record says that the tree is there: after a power cut, too.
    record = {"package": PACKAGE, "version": VERSION, "sha256": SDIST_SHA256, "files": files, "changes": changes}
    write_json(args.output_dir / "source.json", record | {"tree_sha256": tree_sha256(args.output_dir / "source")})
    logging.info("unpacked %d files to %s", files, args.output_dir / "source")


if __name__ == "__main__":
    run(main)
