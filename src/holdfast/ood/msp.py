"""Maximum softmax probability: a classifier is less sure of what it has not learnt.

The oldest baseline: an input is as anomalous as the probability of the predicted class is low. Needs nothing but
logits and no fit.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
ICLR 2017, arXiv:1610.02136.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features

__all__ = ["MSP", "log_odds"]


@dataclass(frozen=True, kw_only=True)
class MSP(
    Detector,
    id="msp",
    title="Maximum softmax probability",
    paper=Paper(
        title="A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
        arxiv="1610.02136",
        venue="ICLR",
        year=2017,
    ),
):
    """Low confidence of the predicted class marks an anomaly.

    The score is the log odds against the predicted class, ``log((1 - p_max) / p_max)``: it ranks exactly as
    ``-p_max`` does, but confident inputs do not all round to the same value.

    Args:
        temperature: the logits are divided by it first.
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Log odds against the predicted class, (N,), float64, any sign; needs at least two classes."""
        return log_odds(features.logits, self.temperature)


def log_odds(logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, " n"]:
    """The log odds against the predicted class, ``log((1 - p_max) / p_max)``, float64."""
    z = logits.double() / temperature
    top, predicted = z.max(dim=1, keepdim=True)
    others = z.scatter(1, predicted, -torch.inf)
    return torch.logsumexp(others - top, dim=1)
