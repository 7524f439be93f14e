"""From a fine-tuned LoRA adapter to quantized models in Ollama, without writing YAML.

    python scripts/quantize_finetuned_for_ollama.py --lora-path runs/road-design --quantization Q4_K_M --output-dir road

The base model is found by what adapter_config.json says. OUTPUT_DIR/config.yaml is written, to be kept or edited, and Snakemake
builds what is missing or outdated: the same command again does nothing, another --system only registers anew, another
--quantization is added to those that are there. What is not said stays as the configuration has it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ollamake.errors import run
from ollamake.one_shot_build import Request, build


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    need = parser.add_argument_group("what to build")
    need.add_argument(
        "--lora-path", metavar="DIR", required=True, help="the PEFT adapter: a folder with adapter_config.json"
    )
    need.add_argument(
        "--output-dir", metavar="DIR", required=True, help="where everything is built; one model a folder"
    )
    need.add_argument(
        "--quantization", metavar="TYPE", nargs="+", action="extend", default=[],
        help="Q4_K_M (at first the default), Q8_0, F16 or another type of llama-quantize, 4bit or 8bit, or auto: the best that"
        " fits; nf4 or int8 for a checkpoint of bitsandbytes; several may be given",
    )  # fmt: skip
    need.add_argument("--base", metavar="DIR", help="the base model's folder (default: found by adapter_config.json)")
    model = parser.add_argument_group("the model in Ollama")
    model.add_argument("--name", help="its name (default: from the adapter's folder)")
    model.add_argument("--system", metavar="TEXT", help="its system prompt; an empty text for none")
    model.add_argument("--target", choices=["auto", "server", "store"], help="where it is registered: a running server, a"
                       " folder in Ollama's format, or (auto, the default) the server if it answers")  # fmt: skip
    model.add_argument(
        "--ollama-host", metavar="HOST", help="address of the server; means --target server if that is not given"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--plan", action="store_true", help="only say what fits, how large it is and how long it takes; the base"
                     " need not be here")  # fmt: skip
    how.add_argument("--dry-run", action="store_true", help="say what would be built, and change nothing")
    how.add_argument("--cores", metavar="N", default="all", help="how many cores may be used (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    sys.exit(build(Request(**vars(parse_args(argv))), Path(__file__).resolve().parents[1]))


if __name__ == "__main__":
    run(main)
