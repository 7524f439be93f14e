"""Write a Markdown file as a page of HTML in one file, for the report.

python scripts/write_page.py --title 'rag-finetuned: plan' --text results/m/plan.md --output results/m/plan.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ollamake.atomic_write import write_sealed_text
from ollamake.errors import run
from ollamake.markdown_page import markdown_page


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--title", required=True, help="title of the page")
    parser.add_argument("--text", type=Path, required=True, help="the Markdown file; its pictures lie beside it")
    parser.add_argument("--output", type=Path, required=True, help="the page, as HTML")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    write_sealed_text(args.output, markdown_page(args.title, args.text))


if __name__ == "__main__":
    run(main)
