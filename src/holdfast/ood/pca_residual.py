"""PCA residual: what a feature has outside the space that holds most of the training features' variance.

The plain baseline that kernel methods and `vim` improve on: known and unknown features have much of their variance in
common, so the residual alone separates them only so well.

Guan et al., "Revisit PCA-Based Technique for Out-of-Distribution Detection", ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import wanted
from holdfast.ood.statistics import chunks, class_statistics

__all__ = ["PCAResidual"]


@dataclass(frozen=True, kw_only=True)
class PCAResidual(
    Detector,
    id="pca-residual",
    title="PCA residual",
    paper=Paper(title="Revisit PCA-Based Technique for Out-of-Distribution Detection", venue="ICCV", year=2023),
):
    """A large part outside the principal space of the training features marks an anomaly.

    Args:
        explained: share of the training features' variance that the principal space holds at least.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    explained: Annotated[float, Field(gt=0, lt=1)] = 0.9

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The mean (D,) and the directions outside the principal space (D, R).

        Raises:
            UserError: the features are all alike, or the principal space takes every direction.
        """
        found = class_statistics(features)
        values, vectors = torch.linalg.eigh(found.total)
        shares = values.clamp(min=0).flip(0).cumsum(0)
        if float(shares[-1]) <= 0:
            raise UserError(f"{self.id}: the training features are all alike, so there is nothing to learn from them.")
        principal = int((shares < self.explained * shares[-1]).sum()) + 1
        if principal == len(values):
            raise UserError(
                f"{self.id}: it takes all {principal} directions to explain {self.explained:g} of the variance; "
                "choose a smaller share."
            )
        return {"mean": found.mean, "residual": vectors[:, : len(values) - principal].contiguous()}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The length of the part outside the principal space, (N,), float64, at least 0."""
        h = wanted(features.penultimate)
        mean, residual = state["mean"].to(h.device), state["residual"].to(h.device)
        return torch.cat([((part - mean) @ residual).norm(dim=1) for _, part in chunks(h)])
