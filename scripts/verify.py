"""Compare every registered model with its marker: digests, system prompt, template, parameters, license, every blob.

    python scripts/verify.py --markers results/*/ollama/*/registered.json

Changes nothing. Blobs in a store are read whole; of a server's, which check them when they come, the presence is asked.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ollamake.create_request import request_of_marker
from ollamake.errors import OllamakeError, run
from ollamake.registration import marker_differences


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markers", type=Path, nargs="*", required=True, help="the registration markers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.markers:
        raise OllamakeError("no model is planned yet, so none can be registered; run `snakemake registered`.")
    faulty: list[str] = []
    for file in args.markers:
        try:
            marker = json.loads(file.read_text(encoding="utf-8"))
            found = marker_differences(marker, *request_of_marker(marker))
            name = f"{marker['name']} ({marker.get('host') or marker['store']})"
        except FileNotFoundError:
            name, found = str(file), ["not registered yet: run `snakemake registered`"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            name, found = (
                str(file),
                [f"the marker cannot be read ({error!r}); delete it and run `snakemake registered`"],
            )
        except OllamakeError as error:
            name, found = str(file), [str(error)]
        if found:
            faulty.append("\n    ".join([name, *found]))
        else:
            logging.info("%s: as registered", name)
    if faulty:
        count = f"{len(faulty)} of {len(args.markers)} models are not as they were registered"
        raise OllamakeError(
            "\n  ".join([f"{count}:", *faulty])
            + "\nNothing has been changed. `snakemake registered` registers what was deleted, renamed or replaced; for a missing"
            " blob add `--forcerun register`; a damaged one has to be deleted before. Of a silent server nothing is known."
        )


if __name__ == "__main__":
    run(main)
