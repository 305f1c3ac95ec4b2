"""NNGuide: the energy of an input, guided by how near it comes to confident training features.

A classifier is overconfident far from the training data, where its energy misleads. The mean similarity to the nearest
of some training features, each weighted by its own confidence, is small there.

Park et al., "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023, arXiv:2309.14888.
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
from holdfast.ood.head import energy, wanted
from holdfast.ood.knn import on_the_sphere
from holdfast.ood.nearest import largest
from holdfast.run import Run

__all__ = ["NNGuide"]


@dataclass(frozen=True, kw_only=True)
class NNGuide(
    Detector,
    id="nnguide",
    title="Nearest neighbour guidance",
    paper=Paper(
        title="Nearest Neighbor Guidance for Out-of-Distribution Detection",
        arxiv="2309.14888",
        venue="ICCV",
        year=2023,
    ),
):
    """A small product of confidence and similarity to confident training features marks an anomaly.

    Args:
        k: how many neighbours the similarity is averaged over; at most the number of training features.
        fraction: of the training features kept in the bank, drawn at random once and for all; at least `k` are.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})
    needs_fit: ClassVar[bool] = True

    k: Annotated[int, Field(ge=1)] = 100
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.01

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Keep the bank: training features on the unit sphere, times their confidence, float32 (M, D).

        Raises:
            UserError: there are fewer than `k` training features.
        """
        if len(features) < self.k:
            raise UserError(f"nnguide: k must be at most the {len(features)} training features, got {self.k}.")
        size = max(round(self.fraction * len(features)), self.k)
        # The same draw for every run: a detector's state depends on the features alone. Training sets come sorted by
        # class, so that the first features, which OpenOOD takes, would not do.
        chosen = torch.randperm(len(features), generator=Run().rng("nnguide bank"))[:size].sort().values
        kept = features.select(chosen)
        return {"bank": (on_the_sphere(wanted(kept.penultimate)) * -energy(kept.logits)[:, None]).float()}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Minus confidence times guidance, (N,), float64, any sign."""
        queries = on_the_sphere(wanted(features.penultimate))
        guidance = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
        for rows, similarities, _ in largest(queries, state["bank"].to(queries), self.k):
            guidance[rows] = similarities.mean(1, dtype=torch.float64)
        return energy(features.logits) * guidance
