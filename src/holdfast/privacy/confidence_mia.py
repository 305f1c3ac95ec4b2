"""Membership inference by confidence: a model is surer of what it has seen.

The attacker needs one query and not even the label: images whose largest probability is high are taken for members.

Salem et al., "ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning
Models", NDSS 2019, arXiv:1806.01246, section 5 (adversary 3, maximum posterior).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Paper
from holdfast.models import Features
from holdfast.privacy.log_odds import log_odds
from holdfast.privacy.membership import MembershipInference

__all__ = ["ConfidenceMIA"]


@dataclass(frozen=True, kw_only=True)
class ConfidenceMIA(
    MembershipInference,
    id="confidence-mia",
    title="Membership inference by confidence",
    paper=Paper(
        title="ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning "
        "Models",
        arxiv="1806.01246",
        venue="NDSS",
        year=2019,
    ),
):
    """High confidence in whatever class is predicted marks a member.

    The true class's probability would rank images exactly as `loss-mia` does; this attack does without the label.
    No hyperparameters.
    """

    def score(self, features: Features) -> Float[Tensor, " n"]:
        """Log odds of the predicted class, (N,), float64: the order of its probability, without saturation."""
        return log_odds(features.logits, features.predictions)
