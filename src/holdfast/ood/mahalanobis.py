"""Mahalanobis distance: an anomaly is far from every class, in units of how the classes' features spread.

The features of each class are taken to be Gaussian around the class's mean, with one covariance for all classes; the
score is the squared distance to the nearest mean. This is the score of the penultimate layer alone; the paper adds a
step of input noise and weighs several layers.

Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, arXiv:1807.03888.
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
from holdfast.ood.head import wanted
from holdfast.ood.statistics import chunks, class_statistics, inverse_root

__all__ = ["Mahalanobis", "squared_distances"]


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(
    Detector,
    id="mahalanobis",
    title="Mahalanobis distance",
    paper=Paper(
        title="A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
        arxiv="1807.03888",
        venue="NeurIPS",
        year=2018,
    ),
):
    """A long way to the nearest class mean, the features being whitened within classes, marks an anomaly.

    Classes are the labels of the training images. Directions in which the features of no class vary, such as those of
    dead units, do not count: the inverse of the covariance is the pseudo-inverse. No hyperparameters.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The classes' means (C, D) and what whitens their covariance (D, R).

        Raises:
            UserError: within the classes, the features are all alike.
        """
        found = class_statistics(features)
        return {"means": found.means, "whitener": inverse_root(found.within, self.id)}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The squared distance to the nearest mean, (N,), float64, at least 0; about R for known images."""
        distances = squared_distances(wanted(features.penultimate), state["means"], state["whitener"])
        return distances.amin(dim=1)


def squared_distances(
    h: Float[Tensor, "n d"], means: Float[Tensor, "c d"], whitener: Float[Tensor, "d r"]
) -> Float[Tensor, "n c"]:
    """Squared distances of features to means once both are whitened, float64.

    Args:
        h: the features.
        means: float64.
        whitener: float64, A with ``A A^T`` the inverse of the covariance.
    """
    means, whitener = means.to(h.device), whitener.to(h.device)
    # Both are moved near the origin first, or |a|^2 - 2 a.m + |m|^2 would lose the digits that count.
    origin = means.mean(0)
    centres = (means - origin) @ whitener
    parts = []
    for _, part in chunks(h):
        white = (part - origin) @ whitener
        parts.append(white.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * white @ centres.T)
    return torch.cat(parts).clamp_(min=0)
