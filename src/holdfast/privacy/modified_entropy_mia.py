"""Membership inference by modified entropy: peaked on the label marks a member, peaked elsewhere the contrary.

The entropy of an answer is the same whichever class it favours. The modified entropy is 0 when the label has all the
probability, falls as the label's grows, and is infinite when another class has it all.

Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021,
arXiv:2003.10595, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Paper
from holdfast.models import Features
from holdfast.privacy.log_odds import log_probabilities
from holdfast.privacy.membership import MembershipInference

__all__ = ["ModifiedEntropyMIA"]


@dataclass(frozen=True, kw_only=True)
class ModifiedEntropyMIA(
    MembershipInference,
    id="modified-entropy-mia",
    title="Membership inference by modified entropy",
    paper=Paper(
        title="Systematic Evaluation of Privacy Risks of Machine Learning Models",
        arxiv="2003.10595",
        venue="USENIX Security",
        year=2021,
    ),
):
    """A low modified entropy marks a member.

    With two classes it ranks as the loss does; with more, it also reads how the rest is spread. The paper sets a
    threshold for each class on shadow data; here, as with the other attacks, all classes share one. No hyperparameters.
    """

    def score(self, features: Features) -> Float[Tensor, " n"]:
        """``(1 - p_y) log p_y + sum over i != y of p_i log(1 - p_i)``, (N,), float64, at most 0."""
        log_p, log_rest = log_probabilities(features.logits)
        terms = log_p.exp() * log_rest
        label = features.y[:, None]
        own = log_rest.gather(1, label).exp() * log_p.gather(1, label)
        return terms.scatter(1, label, own).sum(1)
