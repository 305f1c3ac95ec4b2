"""fDBD: known inputs lie far from the boundaries where the classifier's decision would change.

The distance from a feature to the boundary between two classes has a closed form, for the last layer is linear. Its
mean over the classes is compared with the feature's distance to the mean of training features, as features far out have
more room.

Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024, arXiv:2312.11536.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import head_state, wanted
from holdfast.ood.statistics import chunks, mean_of

__all__ = ["FDBD"]

_NO_DISTANCE = 1e-8  # a feature this near to the mean counts as so far from it


@dataclass(frozen=True, kw_only=True)
class FDBD(
    Detector,
    id="fdbd",
    title="Distance to decision boundaries",
    paper=Paper(
        title="Fast Decision Boundary based Out-of-Distribution Detector",
        arxiv="2312.11536",
        venue="ICML",
        year=2024,
    ),
):
    """A short mean distance to the decision boundaries marks an anomaly. No hyperparameters."""

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})
    needs_fit: ClassVar[bool] = True

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Find the mean of the features, and how far apart the weights of each two classes are, (K, K).

        Raises:
            UserError: the model ends in no linear layer.
        """
        weight = head_state(head, self.id)["weight"].double()
        apart = torch.stack([(weight - row).norm(dim=1) for row in weight])
        # A class has no boundary with itself, nor with another of the same weights: it is infinitely far.
        apart = apart.masked_fill(apart == 0, torch.inf)
        return {"mean": mean_of(wanted(features.penultimate)), "apart": apart}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Minus the mean distance to the boundaries, by that to the mean feature: (N,), float64, at most 0."""
        z, h = features.logits.double(), wanted(features.penultimate)
        top, predicted = z.max(dim=1, keepdim=True)
        boundaries = (top - z) / state["apart"].to(z.device)[predicted[:, 0]]
        mean = state["mean"].to(h.device)
        spread = torch.cat([(part - mean).norm(dim=1) for _, part in chunks(h)]).clamp(min=_NO_DISTANCE)
        return -boundaries.sum(1) / max(z.shape[1] - 1, 1) / spread
