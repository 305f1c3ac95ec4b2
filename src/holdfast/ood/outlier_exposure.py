"""Outlier exposure: teach a classifier to be unsure, on outliers that are at hand.

Beside the training images every batch holds outliers, on which the softmax is to be uniform. What the network learns
there it does on outliers of other kinds as well, so the plain softmax score detects them better.

Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv:1812.04606, equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Objective, Paper
from holdfast.training import Step

__all__ = ["OutlierExposure", "exposure", "uniformity"]


@dataclass(frozen=True, kw_only=True)
class OutlierExposure(
    Objective,
    id="outlier-exposure",
    title="Outlier exposure",
    paper=Paper(title="Deep Anomaly Detection with Outlier Exposure", arxiv="1812.04606", venue="ICLR", year=2019),
):
    """Cross-entropy on training images and, on outliers, cross-entropy to the uniform distribution.

    Both go through the model in one pass, so that batch normalisation sees the mixture. Trains from scratch or, which
    is cheaper, fine-tunes a trained model for some epochs at a small learning rate. Score with `msp`. The outliers, in
    a recipe ``companions: {outliers: ...}``, must not be of the kind that the result is tested on.

    Args:
        weight: of the outliers' loss.
        ratio: outliers per training image in a batch. The paper takes 2; 1 is cheaper.
    """

    companions: ClassVar[tuple[str, ...]] = ("outliers",)

    weight: Annotated[float, Field(ge=0)] = 0.5
    ratio: Annotated[float, Field(gt=0, le=16)] = 1.0

    def companion_size(self, name: str, count: int) -> int:
        """`ratio` outliers per image."""
        return max(1, round(self.ratio * count))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y) and of its outliers."""
        logits = model(torch.cat([x, step.companions["outliers"].x])).float()
        known, unknown = logits[: len(x)], logits[len(x) :]
        return exposure(step.seen(known), y, unknown, self.weight)


def exposure(
    known: Float[Tensor, "n k"], y: Int64[Tensor, " n"], unknown: Float[Tensor, "m k"], weight: float
) -> Tensor:
    """The loss, from the logits of images with labels `y` and of outliers."""
    return F.cross_entropy(known, y) + weight * uniformity(unknown)


def uniformity(logits: Float[Tensor, "n k"]) -> Tensor:
    """The mean cross-entropy from the uniform distribution to the softmax; log K, its least value, where they agree."""
    return (logits.logsumexp(1) - logits.mean(1)).mean()
