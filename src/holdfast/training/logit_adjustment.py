"""Logit adjustment: learn what speaks for a class beyond its frequency, so that rare classes are not drowned.

The logarithm of each class's share of the training set is added to its logit in training only. The model then answers
as if all classes were equally frequent.

Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, arXiv:2007.07314, equation 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.training.state import Step

__all__ = ["LogitAdjustment"]


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(
    Objective,
    id="logit-adjustment",
    title="Logit adjustment",
    paper=Paper(title="Long-Tail Learning via Logit Adjustment", arxiv="2007.07314", venue="ICLR", year=2021),
):
    """Cross-entropy of the logits plus `tau` times the logarithm of the classes' frequencies.

    Args:
        tau: 1 aims at the best mean accuracy over classes, 0 is plain cross-entropy.
    """

    tau: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y)."""
        if step.counts is None:
            raise UserError("logit-adjustment: it needs the class counts of a training set.")
        logits = step.seen(model(x))
        frequency = step.counts.clamp_min(1).to(logits) / step.counts.sum()
        # A model may have more logits than there are classes; those beyond are as rare as can be seen.
        adjustment = F.pad(frequency.log(), (0, logits.shape[1] - len(frequency)), value=float(frequency.min().log()))
        return F.cross_entropy(logits + self.tau * adjustment, y)
