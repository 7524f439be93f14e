"""What the configuration says of bitsandbytes checkpoints, and what of it a checkpoint depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollamake.errors import OllamakeError

PRECISIONS = ("nf4", "int8")
"""NF4 with double quantization, and LLM.int8()."""


@dataclass(frozen=True)
class BitsAndBytes:
    """The checkpoints to make of a model's merged weights."""

    types: tuple[str, ...] = ()
    skip_modules: tuple[str, ...] | None = None
    """Modules that stay in 16 bits in LLM.int8(), by transformers' `llm_int8_skip_modules`; None leaves it to transformers."""
    compute_dtype: str = "bfloat16"
    """What a matrix in NF4 is multiplied in."""
    evaluate: bool = False
    """Whether the checkpoints are measured against the merged weights, by transformers."""


NO_BITSANDBYTES = BitsAndBytes()
"""Of a model that is only built for a comparison."""


def bitsandbytes_of(filled: Mapping[str, Any], key: str, *, serves_adapter: bool, is_measured: bool) -> BitsAndBytes:
    """Return the `bitsandbytes` of a model ``key`` whose defaults are filled in.

    Raises OllamakeError for checkpoints of a model that is not merged, and for an evaluation without text.
    """
    asked = filled["bitsandbytes"]
    if asked["types"] and serves_adapter:
        raise OllamakeError(
            f"{key}.bitsandbytes.types: {', '.join(asked['types'])} is made from merged weights, and with"
            f" {key}.serve: adapter nothing is merged. Take `serve: merged`, or give the checkpoint a model of its own beside"
            " this one; vLLM also takes base and adapter as they are."
        )
    if asked["types"] and asked["evaluate"] and not is_measured:
        raise OllamakeError(
            f"{key}.bitsandbytes.evaluate: nothing is measured without text. Name files in {key}.quality.text (plain text) or"
            f" {key}.quality.chat (conversations)."
        )
    skipped = asked["skip_modules"]
    return BitsAndBytes(
        types=tuple(asked["types"]),
        skip_modules=None if skipped is None else tuple(skipped),
        compute_dtype=asked["compute_dtype"],
        evaluate=bool(asked["types"]) and asked["evaluate"],
    )


def weights_settings(asked: BitsAndBytes, precision: str) -> dict[str, Any]:
    """Return the arguments of transformers' BitsAndBytesConfig that the weights of a checkpoint depend on."""
    if precision == "nf4":
        return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    skipped = None if asked.skip_modules is None else list(asked.skip_modules)
    return {"load_in_8bit": True, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": skipped}


def all_settings(asked: BitsAndBytes, precision: str) -> dict[str, Any]:
    """Return all arguments of transformers' BitsAndBytesConfig, with those that are only used when the model runs."""
    running = {"bnb_4bit_compute_dtype": asked.compute_dtype} if precision == "nf4" else {}
    return weights_settings(asked, precision) | running
