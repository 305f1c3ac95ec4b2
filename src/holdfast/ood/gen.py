"""GEN: a generalised entropy that takes a small departure from a one-hot softmax for what it is worth.

Shannon's entropy hardly notices whether a probability is a thousandth or a millionth. The power of a small exponent
does, and it is those small probabilities in which known and unknown inputs differ.

Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
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

__all__ = ["GEN"]


@dataclass(frozen=True, kw_only=True)
class GEN(
    Detector,
    id="gen",
    title="Generalised entropy",
    paper=Paper(
        title="GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
        venue="CVPR",
        year=2023,
    ),
):
    """A large ``sum p^gamma (1 - p)^gamma`` over the likeliest classes marks an anomaly.

    Args:
        gamma: the smaller, the more the small probabilities count. At 1 it is Gini's index.
        top: how many classes, the likeliest, enter the sum; all if there are fewer.
    """

    gamma: Annotated[float, Field(gt=0)] = 0.1
    top: Annotated[int, Field(ge=1)] = 100

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The generalised entropy, (N,), float64, at least 0."""
        p = features.logits.double().softmax(1).sort(dim=1, descending=True).values
        rest = 1 - p
        # The largest may be 1 to the last digit; what is missing is then known from the others.
        rest[:, 0] = p[:, 1:].sum(1)
        return torch.pow(p * rest, self.gamma)[:, : self.top].sum(1)
