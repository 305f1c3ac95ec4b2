"""Cross-entropy: the negative log-probability that the model gives to the true class.

Label smoothing after Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
arXiv:1512.00567, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.training.state import Step

__all__ = ["CrossEntropy"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(
    Objective,
    id="cross-entropy",
    paper=Paper(
        title="Rethinking the Inception Architecture for Computer Vision", arxiv="1512.00567", venue="CVPR", year=2016
    ),
):
    """Mean cross-entropy of the batch.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
        class_weights: ``"balanced"`` multiplies a sample's loss by N / (K * samples of its class in the training set),
            so that every class weighs the same.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["balanced"] | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y)."""
        logits = step.seen(model(x))
        return self.of(logits, y, step)

    def of(self, logits: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of logits (N, K) that a model has given already."""
        if self.class_weights is None:
            return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        if step.counts is None:
            raise UserError("cross-entropy: class_weights='balanced' needs the class counts of a training set.")
        weights = len(step.counts) ** -1 * step.counts.sum() / step.counts.clamp_min(1)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)
        return (losses * weights.to(losses)[y]).mean()
