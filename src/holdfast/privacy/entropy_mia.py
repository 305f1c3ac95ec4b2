"""Membership inference by entropy: a model's answer is more peaked on what it has seen.

Like confidence, it does without the label; unlike it, it reads the whole answer: how the rest of the probability is
spread tells as well.

Salem et al., "ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning
Models", NDSS 2019, arXiv:1806.01246, section 5 (adversary 3, entropy).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Paper
from holdfast.models import Features
from holdfast.privacy.log_odds import log_probabilities
from holdfast.privacy.membership import MembershipInference

__all__ = ["EntropyMIA"]


@dataclass(frozen=True, kw_only=True)
class EntropyMIA(
    MembershipInference,
    id="entropy-mia",
    title="Membership inference by entropy",
    paper=Paper(
        title="ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning "
        "Models",
        arxiv="1806.01246",
        venue="NDSS",
        year=2019,
    ),
):
    """Low entropy of the predicted probabilities marks a member.

    An image that is misclassified with certainty counts as a member, too; `modified-entropy-mia` mends that where the
    label is known. No hyperparameters.
    """

    def score(self, features: Features) -> Float[Tensor, " n"]:
        """Minus the entropy in nats, (N,), float64, from -log K to 0."""
        log_p, _ = log_probabilities(features.logits)
        return (log_p.exp() * log_p).sum(1)
