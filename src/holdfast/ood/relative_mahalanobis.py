"""Relative Mahalanobis distance: far from every class, compared with how far from training images in general.

Near anomalies differ from the classes mostly in directions that tell no classes apart, which the plain distance adds up
with the others. The distance to a Gaussian fitted to all training features, whatever their class, contains the same
directions; taken off, what is left is the part that separates classes.

Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021, arXiv:2106.09022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import wanted
from holdfast.ood.mahalanobis import squared_distances
from holdfast.ood.statistics import class_statistics, inverse_root

__all__ = ["RelativeMahalanobis"]


@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobis(
    Detector,
    id="relative-mahalanobis",
    title="Relative Mahalanobis distance",
    paper=Paper(
        title="A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", arxiv="2106.09022", year=2021
    ),
):
    """A longer way to the nearest class mean than to the mean of all marks an anomaly.

    Both covariances are means over the training images. With a single class every score is 0. No hyperparameters.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The classes' means (C, D) and that of all (1, D), and what whitens the covariance around each of them.

        Raises:
            UserError: within the classes, the features are all alike, or there is one class alone.
        """
        found = class_statistics(features)
        if len(found.classes) < 2:  # then both distances are the same, and every score is 0
            raise UserError(
                f"{self.id} compares the classes with all images, and all training images are of one class."
            )
        return {
            "means": found.means,
            "whitener": inverse_root(found.within, self.id),
            "mean": found.mean[None],
            "background": inverse_root(found.total, self.id),
        }

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The squared distance to the nearest class less that to all, (N,), float64, any sign."""
        h = wanted(features.penultimate)
        nearest = squared_distances(h, state["means"], state["whitener"]).amin(dim=1)
        return nearest - squared_distances(h, state["mean"], state["background"])[:, 0]
