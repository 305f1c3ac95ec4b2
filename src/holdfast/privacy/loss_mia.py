"""Membership inference by loss: a model errs less on what it has seen.

The attacker knows the label and takes images with a small training loss for members. How well that works is bounded by
how much the model overfits.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018, arXiv:1709.01604,
section 3 (adversary 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Paper
from holdfast.models import Features
from holdfast.privacy.log_odds import log_odds
from holdfast.privacy.membership import MembershipInference

__all__ = ["LossMIA"]


@dataclass(frozen=True, kw_only=True)
class LossMIA(
    MembershipInference,
    id="loss-mia",
    title="Membership inference by loss",
    paper=Paper(
        title="Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting",
        arxiv="1709.01604",
        venue="CSF",
        year=2018,
    ),
):
    """A small cross-entropy with the label marks a member. No hyperparameters."""

    def score(self, features: Features) -> Float[Tensor, " n"]:
        """Minus the cross-entropy, (N,), float64, at most 0; exact down to losses of 1e-300."""
        # CE = log(1 + exp(-log odds)): the usual z_y - logsumexp(z) cancels to 0 for every loss below 1e-16.
        return -F.softplus(-log_odds(features.logits, features.y), threshold=700)
