"""FG-UAP: turn every image's features away from where they were, and all images gather in one place.

In a trained network the features before the last layer have nearly collapsed onto one direction per class. A pattern
that widens the angle between an image's features with and without it therefore leaves all of them in one direction,
and the network sees one class. Nothing but the angle is needed: no labels, not even predictions.

Ye, Cheng & Huang, "FG-UAP: Feature-Gathering Universal Adversarial Perturbation", 2022, arXiv:2209.13113.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from holdfast.evasion.penultimate import penultimate
from holdfast.evasion.universal import Crowd, UniversalAttack, adam, onto_ball
from holdfast.methods import Paper

__all__ = ["FGUAP"]


@dataclass(frozen=True, kw_only=True)
class FGUAP(
    UniversalAttack,
    id="fg-uap",
    title="Feature-gathering universal perturbation",
    paper=Paper(title="FG-UAP: Feature-Gathering Universal Adversarial Perturbation", arxiv="2209.13113", year=2022),
):
    """A universal pattern that turns the features of every image away from their clean direction.

    Strong without labels and with few images, and carries over to other networks better than patterns fitted to the
    loss. The features are the input of the last linear layer; of a model whose logits do not come straight from one,
    the logits. Given a target class, that class's cross-entropy joins with a small weight. The gain that `fit` reports
    is minus the mean cosine. Costs one gradient per image and pass.

    Args:
        eps: radius of the pattern, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        epochs: passes over the images; the best one counts.
        batch_size: images per step; a tenth of them, where there are fewer than ten batches.
        lr, weight_decay: of Adam, in pixel units. They do not follow `eps`.
        target_weight: of the target's cross-entropy, where there is a target.
    """

    eps: Annotated[float, Field(ge=0)] = 10 / 255
    norm: Literal["linf", "l2"] = "linf"
    epochs: Annotated[int, Field(ge=1)] = 2
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    target_weight: Annotated[float, Field(ge=0)] = 0.1

    def passes(self, crowd: Crowd) -> Iterator[tuple[Tensor, float]]:
        """Widen the angle; the gain is minus the mean cosine."""
        everyone = crowd.order(0)
        features = penultimate(crowd.oracle, crowd.at(everyone[:2]))
        parts = everyone.sort().values.split(features.limit)
        clean = torch.cat([features.logits(crowd.at(rows)).to(crowd.x.device) for rows in parts])
        crowd.queries += 1

        def slope(rows: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            reference = clean[rows].to(v.device)
            return crowd.slope(rows, crowd.at(rows) + v, _turned_away, reference, features)

        return adam(
            crowd,
            self._start(crowd),
            slope,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            target_weight=self.target_weight,
        )

    def _start(self, crowd: Crowd) -> Tensor:
        """A little noise: where features are where they were, the cosine is 1 and has no gradient."""
        noise = torch.rand(crowd.x.shape[1:], generator=crowd.run.rng("start"))
        return onto_ball((2 * noise - 1) * self.eps / 10, self.eps, self.norm).to(crowd.oracle.device)


def _turned_away(features: Tensor, y: Tensor, clean: Tensor) -> Tensor:
    """Minus the cosine of the angle between the features and what they were."""
    return -F.cosine_similarity(features, clean)
