"""Deep nearest neighbours: an anomaly lies far from all training features.

The score is the distance to the k-th nearest training feature, once all features are put on the unit sphere. It assumes
nothing about the shape of the classes; the price is a bank of training features.

Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, arXiv:2204.06507.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import wanted
from holdfast.ood.nearest import largest
from holdfast.ood.statistics import chunks
from holdfast.run import Run

__all__ = ["KNN", "on_the_sphere"]


@dataclass(frozen=True, kw_only=True)
class KNN(
    Detector,
    id="knn",
    title="Deep nearest neighbours",
    paper=Paper(
        title="Out-of-Distribution Detection with Deep Nearest Neighbors", arxiv="2204.06507", venue="ICML", year=2022
    ),
):
    """A long way to the k-th nearest training feature marks an anomaly.

    Scores of the training images themselves count each image as its own first neighbour.

    Args:
        k: which neighbour; at most the size of the bank. The paper takes 50 for CIFAR-10, 200 for CIFAR-100, and 1000
            for ImageNet.
        normalise: put features on the unit sphere first. Without it their length dominates the distance.
        fraction: of the training features kept in the bank, drawn at random once and for all.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    k: Annotated[int, Field(ge=1)] = 50
    normalise: bool = True
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Keep the bank of training features, float32 (M, D + 1).

        The last column holds minus half of each feature's squared length. With it the product of the bank and a query
        that ends in 1 tells which features are nearest; added to the product it would cost half as much again.

        Raises:
            UserError: the bank would hold fewer than `k` features.
        """
        bank = self._placed(features)
        size = round(self.fraction * len(bank))
        if size < self.k:
            raise UserError(f"knn: k must be at most the {size} training features in the bank, got {self.k}.")
        if size < len(bank):
            # The same draw for every run: a detector's state depends on the features alone.
            chosen = torch.randperm(len(bank), generator=Run().rng("knn bank"))[:size]
            bank = bank[chosen.sort().values.to(bank.device)]
        halves = torch.linalg.vecdot(bank, bank) / -2
        return {"bank": torch.cat([bank, halves[:, None]], dim=1)}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The distance to the k-th nearest feature of the bank, (N,), float64; in [0, 2] when normalised."""
        # |q - b|^2 = |q|^2 - 2 (q.b - |b|^2 / 2): the nearest have the largest bracket.
        queries = F.pad(self._placed(features), (0, 1), value=1)
        bank = state["bank"].to(queries.device)
        distances = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
        for rows, _, entries in largest(queries, bank, self.k):
            # The bracket loses digits when q and b are close; the distance itself is taken exactly.
            gaps = queries[rows, :-1].double() - bank[entries[:, -1], :-1].double()
            distances[rows] = gaps.norm(dim=1)
        return distances

    def _placed(self, features: Features) -> Float[Tensor, "n d"]:
        h = wanted(features.penultimate)
        return on_the_sphere(h) if self.normalise else h.float()


def on_the_sphere(h: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows divided by their length in float64, as float32; zeros stay zeros."""
    unit = torch.empty_like(h, dtype=torch.float32)
    for rows, part in chunks(h):
        unit[rows] = F.normalize(part, dim=1)
    return unit
