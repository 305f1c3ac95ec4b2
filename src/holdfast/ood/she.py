"""Simplified Hopfield energy: a known feature resembles what the network has stored of its class.

What is stored is the mean feature of the training images of a class that were classified rightly; the score is minus
the inner product with the stored pattern of the predicted class. It grows with the feature's length: inputs that excite
the network little look anomalous, and those that excite it much look known.

Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern Hopfield
Energy", ICLR 2023.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import wanted
from holdfast.ood.statistics import chunks

__all__ = ["SHE"]


@dataclass(frozen=True, kw_only=True)
class SHE(
    Detector,
    id="she",
    title="Simplified Hopfield energy",
    paper=Paper(
        title="Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern Hopfield "
        "Energy",
        venue="ICLR",
        year=2023,
    ),
):
    """Little resemblance to the stored pattern of the predicted class marks an anomaly.

    A class none of whose training images is classified rightly stores the mean of all of them; one without training
    images stores nothing, and images predicted to belong to it score 0. No hyperparameters.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})
    needs_fit: ClassVar[bool] = True

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The stored patterns, one for each logit, (K, D) float64.

        Warns:
            UserWarning: a class has training images, but none of them is classified rightly.
        """
        h, y = wanted(features.penultimate), features.y
        right = features.predictions == y
        everyone, rightly = (torch.bincount(y[which], minlength=features.num_classes) for which in (y >= 0, right))
        fallen = (everyone > 0) & (rightly == 0)
        if fallen.any():
            names = ", ".join(map(str, fallen.nonzero().flatten().tolist()))
            warnings.warn(
                f"she: no training image of class {names} is classified rightly; all are stored.", stacklevel=2
            )
        stored = right | fallen[y]
        sums = h.new_zeros((features.num_classes, h.shape[1]), dtype=torch.float64)
        for rows, part in chunks(h):
            sums.index_add_(0, y[rows][stored[rows]], part[stored[rows]])
        return {"patterns": sums / torch.where(fallen, everyone, rightly).clamp(min=1)[:, None]}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Minus the inner product with the predicted class's pattern, (N,), float64, any sign."""
        h, predicted = wanted(features.penultimate), features.predictions
        patterns = state["patterns"].to(h.device)
        return torch.cat([-(part * patterns[predicted[rows]]).sum(1) for rows, part in chunks(h)])
