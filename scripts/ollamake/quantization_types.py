"""The types that llama-quantize knows, as a table.

Source: ``QUANT_OPTIONS`` in llama.cpp's tools/quantize/quantize.cpp and ``llama_model_quantize`` in src/llama-quant.cpp, of
the release that :mod:`ollamake.llama_cpp_source` pins; a test compares the names with the program's own list.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizationType:
    """One type of llama-quantize.

    ``bits_per_weight`` is that of a large dense model, for estimates of disk before the file exists (measured on a
    32B Qwen2.5 where the type was; the exact size depends on the shapes). ``needs_imatrix``: llama-quantize refuses
    the type without an importance matrix. ``uses_imatrix``: the tensors are others with one than without
    (``quantize_*`` in ggml/src/ggml-quants.c; embedding and head have no figures in it, whatever their type).
    """

    bits_per_weight: float
    needs_imatrix: bool = False
    uses_imatrix: bool = True


QUANTIZATION_TYPES: dict[str, QuantizationType] = {
    "Q1_0": QuantizationType(1.5, uses_imatrix=False),
    "Q2_0": QuantizationType(2.5, uses_imatrix=False),
    "TQ1_0": QuantizationType(2.0, uses_imatrix=False),
    "TQ2_0": QuantizationType(2.3, uses_imatrix=False),
    "IQ1_S": QuantizationType(1.7, needs_imatrix=True),
    "IQ1_M": QuantizationType(1.9, needs_imatrix=True),
    "IQ2_XXS": QuantizationType(2.2, needs_imatrix=True),
    "IQ2_XS": QuantizationType(2.5, needs_imatrix=True),
    "IQ2_S": QuantizationType(2.6, needs_imatrix=True),
    "IQ2_M": QuantizationType(2.8, needs_imatrix=True),
    "IQ3_XXS": QuantizationType(3.274, needs_imatrix=True),
    "IQ3_XS": QuantizationType(3.4, needs_imatrix=True),
    "IQ3_S": QuantizationType(3.5),
    "IQ3_M": QuantizationType(3.7),
    "Q2_K": QuantizationType(3.005),
    "Q2_K_S": QuantizationType(2.9, needs_imatrix=True),
    "Q3_K_S": QuantizationType(3.513),
    "Q3_K": QuantizationType(3.889),
    "Q3_K_M": QuantizationType(3.889),
    "Q3_K_L": QuantizationType(4.210),
    "IQ4_XS": QuantizationType(4.362),
    "IQ4_NL": QuantizationType(4.6),
    "MXFP4_MOE": QuantizationType(5.0, uses_imatrix=False),
    "Q4_0": QuantizationType(4.550),
    "Q4_1": QuantizationType(5.0),
    "Q4_K": QuantizationType(4.846),
    "Q4_K_S": QuantizationType(4.585),
    "Q4_K_M": QuantizationType(4.846),
    "Q5_0": QuantizationType(5.5),
    "Q5_1": QuantizationType(6.0),
    "Q5_K": QuantizationType(5.678),
    "Q5_K_S": QuantizationType(5.526),
    "Q5_K_M": QuantizationType(5.678),
    "Q6_K": QuantizationType(6.563),
    "Q8_0": QuantizationType(8.501, uses_imatrix=False),
    "F16": QuantizationType(16.0, uses_imatrix=False),
    "BF16": QuantizationType(16.0, uses_imatrix=False),
    "F32": QuantizationType(32.0, uses_imatrix=False),
}

UNQUANTIZED = frozenset({"F16", "BF16", "F32"})
"""Types that only change, or keep, the floating-point format."""
