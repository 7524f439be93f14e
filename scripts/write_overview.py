"""Write the overview of a finished model, how it is prompted and as what it is registered: three pages of HTML.

    python scripts/write_overview.py --model m --merge-plan merge_plan.json ... --ggufs m.unquantized.json m.Q8_0.json \\
        --markers registered.json --pictures plan.svg merge_report.svg --benchmarks benchmarks \\
        --overview overview.html --prompts prompts.html --registrations registrations.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ollamake.atomic_write import write_sealed_text
from ollamake.build_jobs import jobs_of
from ollamake.errors import run
from ollamake.overview import Build
from ollamake.overview_page import overview_page
from ollamake.record_pages import prompts_page, registrations_page
from ollamake.record_seal import read_record

REQUIRED = ("merge_plan", "plan", "inputs", "template", "template_check")
OPTIONAL = ("merge_report", "adapter", "quality", "answers", "imatrix")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's name in the configuration")
    for name in REQUIRED:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, help=f"{name}.json of the model")
    for name in OPTIONAL:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, nargs="?", help="its record, where there is one")
    parser.add_argument("--ggufs", type=Path, nargs="+", required=True, help="records: unquantized, then quantized")
    parser.add_argument("--markers", type=Path, nargs="+", required=True, help="the registration markers")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="plan.svg, merge_report.svg, quality.svg")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of Snakemake's benchmarks")
    for name in ("overview", "prompts", "registrations"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="the page, as HTML")
    return parser.parse_args(argv)


def record(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_record(file)
    return content


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    records = {name: record(getattr(args, name)) for name in REQUIRED}
    optional = {name: record(file) for name in OPTIONAL if (file := getattr(args, name))}
    several = {name: [record(file) for file in getattr(args, name)] for name in ("ggufs", "markers")}
    shown = {"pictures": {file.stem: file.read_bytes() for file in args.pictures}}
    build = Build(args.model, jobs=jobs_of(args.model, args.benchmarks), **shown, **records, **several, **optional)
    for name, page in (("overview", overview_page), ("prompts", prompts_page), ("registrations", registrations_page)):
        write_sealed_text(getattr(args, name), page(build))


if __name__ == "__main__":
    run(main)
