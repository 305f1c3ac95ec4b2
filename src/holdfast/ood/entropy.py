"""Entropy of the softmax: how evenly a classifier spreads its belief.

Where `msp` looks at the predicted class alone, the entropy takes all into account.

Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic Segmentation",
ICCV 2021, arXiv:2012.06575, who score pixels by it; for a classifier's images it is a common baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features

__all__ = ["Entropy"]


@dataclass(frozen=True, kw_only=True)
class Entropy(
    Detector,
    id="entropy",
    title="Entropy of the softmax",
    paper=Paper(
        title="Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic Segmentation",
        arxiv="2012.06575",
        venue="ICCV",
        year=2021,
    ),
):
    """A high entropy marks an anomaly. No hyperparameters."""

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The entropy in nats, (N,), float64, in [0, log K]."""
        return torch.special.entr(features.logits.double().softmax(1)).sum(1)
