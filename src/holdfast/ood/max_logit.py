"""Maximum logit: what the classifier knows is strongly activated.

Unlike the softmax it keeps the logits' size, which is small far from the training data, and it does not suffer when
several similar classes share the probability.

Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features

__all__ = ["MaxLogit"]


@dataclass(frozen=True, kw_only=True)
class MaxLogit(
    Detector,
    id="max-logit",
    title="Maximum logit",
    paper=Paper(
        title="Scaling Out-of-Distribution Detection for Real-World Settings",
        arxiv="1911.11132",
        venue="ICML",
        year=2022,
    ),
):
    """A low largest logit marks an anomaly. No hyperparameters."""

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Minus the largest logit, (N,), float64, any sign. Adding a constant to all logits shifts it."""
        return -features.logits.double().amax(dim=1)
