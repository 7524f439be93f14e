"""What each quantization type costs in quality, as measured and published by llama.cpp.

The figures are those of Llama-3-8B on the test part of Wikitext-2, from the scoreboard in llama.cpp's
tools/perplexity/README.md (same text in the release that :mod:`ollamake.llama_cpp_source` pins), so that all of them come
from one model, one text and one program. They are an orientation, not a prediction: larger models lose less (Q4_K_M costs
2.8 % of perplexity there, 1.2 % on Llama-2-70B), and a fine-tuned model has to be measured on its own text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ollamake.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED

_README = "llama.cpp tools/perplexity/README.md"
_SCOREBOARD = f"Llama-3-8B on Wikitext-2, {{how}} importance matrix ({_README})"
_FORMATS = f"Llama-3-8B on Wikitext-2, F16 against BF16 ({_README})"


@dataclass(frozen=True)
class _Loss:
    """Mean KL divergence to F16 in nats a token, rise of perplexity in per cent, equal first tokens in per cent.

    The rise is PPL / (PPL - ΔPPL) - 1 of the scoreboard's columns. Equal first tokens ("Same top p") were published for
    four types only.
    """

    kld: float
    ppl_percent: float
    top1_percent: float | None = None


_WITHOUT_IMATRIX: dict[str, _Loss] = {
    "Q8_0": _Loss(0.001355, 0.043, 97.674),
    "Q6_K": _Loss(0.005452, 0.349, 96.031),
    "Q5_K_M": _Loss(0.010762, 0.914),
    "Q5_K_S": _Loss(0.016595, 1.684),
    "Q5_1": _Loss(0.018045, 1.705),
    "Q5_0": _Loss(0.022239, 2.112),
    "Q4_K_M": _Loss(0.031273, 2.816, 91.901),
    "Q4_K_S": _Loss(0.043136, 4.315),
    "Q4_1": _Loss(0.071683, 7.239),
    "Q4_0": _Loss(0.071940, 7.518),
    "Q3_K_L": _Loss(0.087176, 8.926),
    "Q3_K_M": _Loss(0.101913, 10.541),
    "Q3_K_S": _Loss(0.228217, 26.191),
    "Q2_K": _Loss(0.445132, 56.485, 71.138),
}

_WITH_IMATRIX: dict[str, _Loss] = {
    "Q4_K_M": _Loss(0.028152, 2.428),
    "Q4_K_S": _Loss(0.031951, 2.857),
    "IQ4_NL": _Loss(0.035742, 3.594),
    "IQ4_XS": _Loss(0.036334, 3.660),
    "Q3_K_L": _Loss(0.073077, 7.054),
    "Q3_K_M": _Loss(0.084358, 8.066),
    "IQ3_M": _Loss(0.102534, 10.699),
    "IQ3_S": _Loss(0.111278, 11.776),
    "IQ3_XS": _Loss(0.138693, 14.946),
    "IQ3_XXS": _Loss(0.183625, 19.687),
    "Q3_K_S": _Loss(0.199821, 22.005),
    "IQ2_M": _Loss(0.325989, 38.018),
    "Q2_K": _Loss(0.332223, 38.773),
    "Q2_K_S": _Loss(0.403360, 49.620),
    "IQ2_S": _Loss(0.439197, 54.868),
    "IQ2_XS": _Loss(0.546290, 72.690),
    "IQ2_XXS": _Loss(0.812022, 126.133),
    "IQ1_M": _Loss(1.393084, 309.102),
    "IQ1_S": _Loss(2.254554, 873.976),
}
"""With the matrix of 10 million tokens, which was used for every type: the scoreboard finds no consistent gain from more."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_BANDS = ((0.003, "near-lossless"), (0.02, "good"), (0.05, "usual for 4 bits"), (0.15, "visible loss"))

CANDIDATES = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
)
"""The types an automatic choice may take, best first.

None needs an importance matrix, and by the figures published without one none has another type that is smaller and
better (as Q4_K_S is against Q4_1, Q5_K_S against Q5_1). IQ4_XS has no figure without a matrix; with one it lies
between Q4_K_S and Q3_K_L, in size and in quality. IQ3_S and IQ3_M, which llama-quantize makes without a matrix too, are
left out because only their quality with one is known.
"""


def quality_class(kld: float) -> str:
    """Return the name of the band in which a mean KL divergence (nats a token, to the 16-bit model) lies.

    The bands follow the anchors: below 0.003 more than 97.5 % of first tokens are equal, below 0.02 95 %, below 0.05 91 %
    (Q4_K_M of most models), below 0.15 the types of 3 bits. A band is a way to speak of a figure, not a measurement.
    """
    return next((name for limit, name in _BANDS if kld < limit), "bad")


def published_quality(kind: str, imatrix: bool = False) -> dict[str, Any] | None:
    """Return what llama-quantize's type ``kind`` costs, as ``kld``, ``ppl_percent``, ``top1_percent``, ``class``, ``source``.

    ``kld`` is in nats a token, the percentages are 0 to 100, ``top1_percent`` is None where it was not published.
    ``imatrix``: the file is made with an importance matrix. A type that llama-quantize refuses without one always has the
    figures with it. Where only the figures without a matrix were published they are given for both, as an upper bound
    (and ``source`` says so). None where nothing was published: IQ4_XS, IQ4_NL, IQ3_M, IQ3_S without a matrix, for which
    those with one would promise too much, and the types that only suit models trained for them. Raises KeyError for a
    type that is none.
    """
    name = _ALIASES.get(kind, kind)
    if name == "F32":
        return {
            "kld": 0.0,
            "ppl_percent": 0.0,
            "top1_percent": 100.0,
            "class": "lossless",
            "source": "nothing is rounded",
        }
    if name in UNQUANTIZED:
        # The scoreboard's own f16 row (KLD 0.00055) is the rounding of the stored logits, not of the weights.
        return {"kld": 2.5e-5, "ppl_percent": 0.04, "top1_percent": 99.739, "class": "lossless", "source": _FORMATS}
    needs_imatrix = QUANTIZATION_TYPES[name].needs_imatrix
    with_imatrix = name in _WITH_IMATRIX and (imatrix or needs_imatrix)
    loss = _WITH_IMATRIX[name] if with_imatrix else _WITHOUT_IMATRIX.get(name)
    if loss is None:
        return None
    return {
        "kld": loss.kld,
        "ppl_percent": loss.ppl_percent,
        "top1_percent": loss.top1_percent,
        "class": quality_class(loss.kld),
        "source": _SCOREBOARD.format(how="with an" if with_imatrix else "without"),
    }


def by_quality() -> list[str]:
    """Return all names of QUANTIZATION_TYPES in the order of expected quality, best first.

    First the floating-point formats (F16 before BF16: it keeps three more bits of a merged weight), then by published KL
    divergence, on one footing: with an importance matrix where that was published, else without. That order is the same
    as the one without a matrix wherever both were published. The alias Q4_K follows Q4_K_M, and so on. Not published:
    MXFP4_MOE, which comes after Q4_0, the next of its family (experts of 4.25 bits in blocks of 32, against 4.5), and
    the one- and two-bit types for models trained that way, which destroy any other: last, by bits per weight.
    """
    published = _WITHOUT_IMATRIX | _WITH_IMATRIX
    ordered = ["F32", "F16", "BF16", *sorted(published, key=lambda name: published[name].kld)]
    for follower, leader in (*_ALIASES.items(), ("MXFP4_MOE", "Q4_0")):
        ordered.insert(ordered.index(leader) + 1, follower)
    rest = [name for name in QUANTIZATION_TYPES if name not in ordered]
    return ordered + sorted(rest, key=lambda name: -QUANTIZATION_TYPES[name].bits_per_weight)
