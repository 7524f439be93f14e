"""Checkpoint folder -> unquantized GGUF, by llama.cpp's own converter."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ollamake.errors import OllamakeError
from ollamake.pre_tokenizer import PRE_TOKENIZERS, pre_tokenizer_name

log = logging.getLogger("ollamake")

OUTTYPE_OF = {"F16": "f16", "BF16": "bf16", "F32": "f32"}
"""safetensors dtype -> the converter's --outtype."""


def outtype_for(plan: dict[str, Any]) -> str:
    """Return the converter's --outtype that loses nothing of the merge: f16, bf16 or f32.

    ``plan`` is a parsed merge_plan.json. The widest matrix dtype decides. A 16-bit mixture (float16 where the adapter
    was merged, bfloat16 elsewhere) becomes f16: bfloat16 would round the merged update away, while a bfloat16 weight
    is exact in float16 down to 6.1e-5 and off by at most 3e-8 below that.
    """
    matrices = {
        tensor["stored"] for shard in plan["shards"] for tensor in shard["tensors"] if len(tensor["shape"]) >= 2
    }
    for dtype in ("F32", "F16", "BF16"):
        if dtype in matrices:
            return OUTTYPE_OF[dtype]
    raise OllamakeError(
        f"the merged checkpoint has no matrix in float16, bfloat16 or float32 (found {sorted(matrices) or 'none'});"
        " llama.cpp has nothing to convert. Choose a base model with 16-bit or 32-bit weights."
    )


def convert(converter: Path, checkpoint: Path, outtype: str, name: str, output: Path) -> None:
    """Run llama.cpp's convert_hf_to_gguf.py in this process and write ``output``.

    Raises OllamakeError with the converter's own word for an architecture or tokenizer it does not know, and for a
    weight that float16 cannot hold (which the converter itself only warns of).
    """
    tree = str(converter.resolve().parent)
    arguments = [str(converter), str(checkpoint), "--outfile", str(output), "--outtype", outtype, "--model-name", name]
    path, argv = list(sys.path), list(sys.argv)
    # sys.path[0] is this project's scripts folder; the converter's own packages must win over everything.
    sys.path.insert(0, tree)
    sys.argv = arguments
    try:
        _teach_pre_tokenizer(checkpoint)
        with np.errstate(over="raise"):
            runpy.run_path(str(converter), run_name="__main__")
    except FloatingPointError as error:
        raise OllamakeError(
            f"a weight of {checkpoint} is larger than float16 can hold (65504). Set `merge: {{dtype: bfloat16}}`"
            " (or float32) in the configuration."
        ) from error
    except NotImplementedError as error:
        raise OllamakeError(f"llama.cpp's converter cannot convert {checkpoint}: {error}") from error
    except SystemExit as error:
        if error.code:
            raise OllamakeError(
                f"llama.cpp's converter ended with {error.code!r} on {checkpoint}; its reason stands above."
            ) from error
    finally:
        sys.path[:], sys.argv = path, argv


def _teach_pre_tokenizer(checkpoint: Path) -> None:
    """Let the converter fall back on the tokenizer's own definition where it does not know the hash."""
    from conversion.base import TextModel  # of llama.cpp's tree, on sys.path only now

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
            log.info("the vocabulary is not known to llama.cpp; its pre-tokenizer is that of %r", name)
            return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre
