"""BATS: bring features back into the range that is typical of training images, then take the energy.

Features beyond their usual range are where the classifier has seen little and should not be trusted. Each unit is
limited to some standard deviations around its mean.

Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022, arXiv:2210.04200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, logits_from, wanted
from holdfast.ood.statistics import chunks, mean_of

__all__ = ["BATS"]


@dataclass(frozen=True, kw_only=True)
class BATS(
    Detector,
    id="bats",
    title="Typical features",
    paper=Paper(
        title="Boosting Out-of-distribution Detection with Typical Features",
        arxiv="2210.04200",
        venue="NeurIPS",
        year=2022,
    ),
):
    """High energy of the logits that typical features give marks an anomaly.

    The official code limits the output of a batch normalisation by its weight and bias, which are the mean and the
    deviation wanted. Here they are those of the penultimate features of training images, so that any model will do;
    the authors of `kpca-ood` use it in this way.

    Args:
        width: how many standard deviations around the mean are typical. 1.05 is for ImageNet. The 0.1 in use for the
            batch normalisations of small networks is too little here: what tells the classes apart goes as well.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    width: Annotated[float, Field(gt=0)] = 1.05

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Find each unit's range, and keep the head.

        Raises:
            UserError: the model ends in no linear layer.
        """
        h = wanted(features.penultimate)
        mean = mean_of(h)
        squares = torch.stack([(part - mean).square().sum(0) for _, part in chunks(h)])
        deviation = (squares.sum(0) / len(h)).sqrt()
        low, high = mean - self.width * deviation, mean + self.width * deviation
        return {"low": low.float(), "high": high.float(), **head_state(head, self.id)}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign."""
        return energy(logits_from(self.clipped(wanted(features.penultimate), state), state))

    def clipped(self, h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """The features, each limited to its unit's range."""
        return h.clamp(state["low"].to(h), state["high"].to(h))
