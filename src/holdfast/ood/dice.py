"""DICE: keep the weights that matter to training images, then take the energy.

A logit adds up many small contributions of units that have nothing to do with its class. They are noise, and noise
lifts the logits of unknown inputs. Only the weights with the largest mean contribution on training images stay.

Sun and Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", ECCV 2022, arXiv:2111.09805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, logits_from, wanted
from holdfast.ood.statistics import mean_of

__all__ = ["DICE"]


@dataclass(frozen=True, kw_only=True)
class DICE(
    Detector,
    id="dice",
    title="Directed sparsification",
    paper=Paper(
        title="DICE: Leveraging Sparsification for Out-of-Distribution Detection",
        arxiv="2111.09805",
        venue="ECCV",
        year=2022,
    ),
):
    """High energy of the logits that the most contributing weights give marks an anomaly.

    Args:
        percentile: of the weights' mean contributions, all classes together, under which weights are dropped; the bias
            stays. 0 drops none. The paper takes 90 for CIFAR-10 with 342 features; of ResNet-20's 64 so much leaves
            a handful of weights per class, and 50 to 70 tell near and far sets apart better.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    percentile: Annotated[float, Field(ge=0, lt=100)] = 90.0

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Keep the head, sparse.

        Raises:
            UserError: the model ends in no linear layer.
        """
        state = head_state(head, self.id)
        contribution = state["weight"].double() * mean_of(wanted(features.penultimate)).cpu()
        kept = contribution > float(np.percentile(contribution.numpy(), self.percentile))
        if self.percentile > 0:  # at 0 the least of all contributions is the threshold, and would go
            state["weight"] = state["weight"] * kept
        return state

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign."""
        return energy(logits_from(wanted(features.penultimate), state))
