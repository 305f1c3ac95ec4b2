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
from holdfast.run import Run

__all__ = ["KNN"]

# Similarities are computed for this many (query, bank) pairs at a time: 64 MiB of float32 whatever the bank's size.
_PAIRS_AT_ONCE = 2**24


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
        """Keep the bank of training features, (M, D) float32.

        Raises:
            UserError: the bank would hold fewer than `k` features.
        """
        bank = self._placed(features.penultimate)
        size = round(self.fraction * len(bank))
        if size < self.k:
            raise UserError(f"knn: k must be at most the {size} training features in the bank, got {self.k}.")
        if size < len(bank):
            # The same draw for every run: a detector's state depends on the features alone.
            chosen = torch.randperm(len(bank), generator=Run().rng("knn bank"))[:size]
            bank = bank[chosen.sort().values.to(bank.device)]
        return {"bank": bank}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The distance to the k-th nearest feature of the bank, (N,), float64; in [0, 2] when normalised."""
        queries = self._placed(features.penultimate)
        bank = state["bank"].to(queries.device)
        # |q - b|^2 = |q|^2 - 2 (q.b - |b|^2 / 2): the nearest have the largest bracket, found by one product per block.
        offsets = bank.square().sum(1) / -2
        distances = []
        for block in queries.split(max(1, _PAIRS_AT_ONCE // len(bank))):
            kth = torch.addmm(offsets, block, bank.T).topk(self.k, dim=1).indices[:, -1]
            # The bracket loses digits when q and b are close; the distance itself is taken exactly.
            distances.append((block.double() - bank[kth].double()).norm(dim=1))
        return torch.cat(distances)

    def _placed(self, features: Tensor | None) -> Tensor:
        assert features is not None, "FittedDetector sees to it that the features which a detector reads are there"
        return F.normalize(features.double(), dim=1).float() if self.normalise else features.float()
