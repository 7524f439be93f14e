"""Quantizes one matrix through bitsandbytes, a band of it at a time, to the tensors that its layers save.

Blocks (NF4) and rows (LLM.int8()) do not know of each other, so bands give the bytes that the whole gives, in less memory and
faster. Only the mean of all maxima in NF4's double quantization is taken over the matrix, as quantize_4bit of bitsandbytes
0.50 takes it. torch sums it in another order for each number of threads; here it is one thread, so that the same weights
always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from bitsandbytes.functional import QuantState, int8_vectorwise_quant, quantize_4bit, quantize_blockwise

from ollamake.bitsandbytes_layout import NF4_BLOCK, NF4_NESTED_BLOCK
from ollamake.errors import OllamakeError

BAND = 1 << 20
"""Elements of a band, whole blocks of NF4. A band of LLM.int8() has as many whole rows as are in it, one at least."""

Write = Callable[[str, int, torch.Tensor], None]
"""Takes the name of a tensor, the byte from which on, and a part of it."""


def quantize_nf4(name: str, shape: tuple[int, ...], bands: Iterable[torch.Tensor], write: Write) -> tuple[str, bytes]:
    """Quantize a matrix, given as flat bands of BAND elements, to NF4 with double quantization.

    Returns the name and the bytes of its `quant_state`. The other tensors go to ``write`` (nf4_entries of bitsandbytes_layout).
    Raises OllamakeError for weights that are not finite.
    """
    maxima, offset, state = [], 0, None
    for band in bands:
        _require_finite(name, band, band)
        packed, state = quantize_4bit(band, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False)
        write(name, offset, packed)
        offset += packed.numel()
        maxima.append(state.absmax)
    if state is None:
        raise OllamakeError(
            f"{name} has no elements: shape {list(shape)}. The merged checkpoint is damaged; merge again."
        )
    absmax = torch.cat(maxima)
    mean = absmax.mean()
    nested, nested_state = quantize_blockwise(absmax - mean, blocksize=NF4_NESTED_BLOCK)
    whole = QuantState(
        absmax=nested,
        shape=torch.Size(shape),
        code=state.code,
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=state.dtype,
        offset=mean,
        state2=nested_state,
    )
    saved = {f"{name}.{key}": tensor for key, tensor in whole.as_dict(packed=True).items()}
    (last,) = (key for key in saved if key.startswith(quant_state_name(name)))
    text = saved.pop(last)
    for key, tensor in saved.items():
        write(key, 0, tensor)
    return last, text.numpy().tobytes()


def quantize_int8(name: str, bands: Iterable[torch.Tensor], write: Write) -> None:
    """Quantize a matrix, given in bands of rows, to LLM.int8(); its tensors go to ``write``.

    As Int8Params of bitsandbytes.nn does, through float16. Raises OllamakeError for weights that it does not hold.
    """
    scales, offset = [], 0
    for band in bands:
        half = band.to(torch.float16)
        _require_finite(name, band, half)
        codes, scale, _ = int8_vectorwise_quant(half)
        write(name, offset, codes)
        offset += codes.numel()
        scales.append(scale)
    layer = name.removesuffix("weight")
    write(f"{layer}SCB", 0, torch.cat(scales))
    # 0 says that rows are in their order, the only format there is today (Linear8bitLt._save_to_state_dict).
    write(f"{layer}weight_format", 0, torch.tensor(0, dtype=torch.uint8))


def quant_state_name(name: str) -> str:
    """Return the name of the tensor in which bitsandbytes keeps what is no tensor of a weight in NF4."""
    return f"{name}.quant_state.bitsandbytes__nf4"


def _require_finite(name: str, values: torch.Tensor, held: torch.Tensor) -> None:
    """Raise OllamakeError unless ``values``, and what is ``held`` of them, are finite."""
    if torch.isfinite(held).all():
        return
    if torch.isfinite(values).all():
        raise OllamakeError(
            f"{name} has values beyond 65504, which LLM.int8() does not hold: it goes through float16. Take nf4 in"
            " bitsandbytes.types, or name the module in bitsandbytes.skip_modules."
        )
    raise OllamakeError(
        f"{name} has NaN or infinity, with which the rest of its block or row would be lost. Look at merge_report.json for what"
        " the adapter did to it, and at the base."
    )
