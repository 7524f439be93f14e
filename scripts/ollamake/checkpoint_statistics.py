"""The statistics of llama-perplexity, of any two models whose logits for the same tokens are at hand.

Formulas: kl_divergence() in tools/perplexity/perplexity.cpp of llama.cpp. Uncertainties are one standard error and take tokens as
independent. Other than there, the reference is not rounded to 16 bits, so two equal models are at a divergence of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_SLICE = 16
"""Tokens of which all probabilities are in memory in float64 at once."""

Floats = npt.NDArray[np.float64]


class TokenFigures:
    """What is known of each scored token, gathered chunk by chunk."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    @property
    def tokens(self) -> int:
        """How many tokens there are so far."""
        return sum(part.shape[1] for part in self._parts)

    def add(self, reference: torch.Tensor, measured: torch.Tensor, following: torch.Tensor) -> None:
        """Take the logits [tokens, vocabulary] of both models, and the ids [tokens] that really follow."""
        for first in range(0, len(following), _SLICE):
            part = slice(first, first + _SLICE)
            own, other = (logits[part].double().log_softmax(-1) for logits in (reference, measured))
            said = following[part, None]
            kld = (own.exp() * (own - other)).sum(-1)
            same = own.argmax(-1) == other.argmax(-1)
            columns = [-own.gather(1, said)[:, 0], -other.gather(1, said)[:, 0], kld, same.double()]
            self._parts.append(torch.stack(columns).numpy())

    def figures(self) -> dict[str, Any]:
        """Return the figures by the names of results/M/quality/TYPE.json: nats, per cent, {value, error}.

        Of no token, or with logits that are not finite, there are NaN among them.
        """
        own, other, kld, same = np.concatenate(self._parts, axis=1)
        change = np.exp(-other) - np.exp(-own)
        ratio, ratio_error = _mean(other - own)
        square, square_error = _mean(change**2)
        rms = float(np.sqrt(square))
        share, count = float(same.mean()), len(same)
        return {
            "ppl": _exponential(other),
            "ppl_reference": _exponential(own),
            "ln_ppl_ratio": _figure(ratio, ratio_error),
            "ppl_ratio": _figure(np.exp(ratio), np.exp(ratio) * ratio_error),
            "kld": {"mean": _figure(*_mean(kld)), "max": float(kld.max()), "min": float(kld.min())}
            | {"median": float(np.median(kld)), "p99": float(np.quantile(kld, 0.99))},
            "delta_p": {
                "mean": _figure(*(100 * figure for figure in _mean(change))),
                "rms": _figure(100 * rms, 50 * square_error / rms if rms else 0.0),
            },
            "same_top": _figure(100 * share, 100 * np.sqrt(share * (1 - share) / max(1, count - 1))),
        }


def _mean(values: Floats) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std() / np.sqrt(max(1, len(values) - 1)))


def _exponential(values: Floats) -> dict[str, float]:
    mean, error = _mean(values)
    return _figure(np.exp(mean), np.exp(mean) * error)


def _figure(value: float, error: float) -> dict[str, float]:
    return {"value": float(value), "error": float(error)}
