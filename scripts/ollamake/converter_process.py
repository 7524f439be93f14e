"""The process in which llama.cpp's converter runs: its own code, with three things it does not do by itself.

Run as a program, `python converter_process.py CONVERTER ARGUMENTS...`; it imports little of this package, so that the converter
finds the modules of its own tree.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFUSAL = "ollamake: "
"""What a line that says why nothing was converted begins with."""

_UNKNOWN_TENSOR = re.compile(r"Can not map tensor '([^']+)'")
"""conversion/base.py of llama.cpp's tree."""
_STACKED_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|down_proj)(\.weight)?$")


def run_converter(
    converter: Path, arguments: list[str], prepare: Callable[[], None] | None = None, named: str | None = None
) -> None:
    """Run the converter; exit with a line that begins with REFUSAL where its reason is one that a user can mend.

    ``prepare`` is called when the converter's own modules can be imported, before it runs; ``named`` is what messages call
    the model instead of the checkpoint's folder.
    """
    import numpy as np

    checkpoint = Path(arguments[0])
    sys.path.insert(0, str(converter.resolve().parent))
    sys.path.append(str(Path(__file__).parents[1]))
    sys.argv = [str(converter), *arguments]
    from ollamake.remote_code import forbid_remote_code

    forbid_remote_code()
    # Whoever reads what it says looks for the last line of a traceback; this package would say it in a message of its own.
    sys.excepthook = sys.__excepthook__
    try:
        _teach_pre_tokenizer(checkpoint)
        if prepare is not None:
            prepare()
        # The converter casts with numpy, which lets what float16 cannot hold become infinite with a warning.
        with np.errstate(over="raise"):
            runpy.run_path(str(converter), run_name="__main__")
    except FloatingPointError:
        sys.exit(
            f"{REFUSAL}a weight of {checkpoint} is larger than float16 can hold (65504)."
            " Set `merge: {dtype: bfloat16}` (or float32) in the configuration."
        )
    except NotImplementedError as error:
        sys.exit(f"{REFUSAL}llama.cpp's converter cannot convert {named or checkpoint}: {error}".replace("\n", " "))
    except ValueError as error:
        if unknown := _UNKNOWN_TENSOR.search(str(error)):
            sys.exit(f"{REFUSAL}{_unknown_tensor(unknown[1], named or str(checkpoint))}")
        raise


def _unknown_tensor(tensor: str, model: str) -> str:
    said = f"llama.cpp's converter cannot convert {model}: of its architecture it knows no tensor {tensor}."
    if not _STACKED_EXPERTS.search(tensor):
        return said
    return (
        f"{said} All experts of a layer are one tensor there, as transformers 5 has them in memory; llama.cpp expects each"
        " expert's matrices by themselves. Give the base as it was published; the adapter fits it as it is. Or let transformers"
        " write it so: model = AutoModelForCausalLM.from_pretrained(BASE); model._weight_conversions = None;"
        " model.save_pretrained(FOLDER)"
    )


def _teach_pre_tokenizer(checkpoint: Path) -> None:
    """Let the converter fall back on the tokenizer's own definition where it does not know its hash."""
    try:
        from conversion.base import TextModel  # of llama.cpp's tree
    except ImportError:
        print(
            "WARNING: this converter is older than the pinned one; it must know the tokenizer by itself",
            file=sys.stderr,
        )
        return
    from ollamake.pre_tokenizer import PRE_TOKENIZERS, pre_tokenizer_name

    original: Callable[..., str] = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return original(self, tokenizer)
        except NotImplementedError as error:
            definition = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
            name = pre_tokenizer_name(definition)
            if name is None:
                raise NotImplementedError(
                    "its pre-tokenizer is not one that llama.cpp knows by hash, nor one of"
                    f" {', '.join(PRE_TOKENIZERS)} by its definition in tokenizer.json"
                ) from error
            print(
                f"WARNING: llama.cpp does not know this vocabulary; its pre-tokenizer is that of {name}",
                file=sys.stderr,
            )
            return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre


if __name__ == "__main__":
    # This file's folder is not a package of the converter's; it must not shadow any of its modules.
    sys.path.pop(0)
    run_converter(Path(sys.argv[1]), sys.argv[2:])
