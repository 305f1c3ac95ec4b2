"""l1-sparse: fine-tune on the retained images under an l1 penalty on the weights that fades out.

A sparse model has less room to remember in, and the error of cheap unlearning against retraining shrinks with it. The
penalty makes the model sparse while it unlearns, without pruning anything.

Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import Step
from holdfast.unlearning.fine_tuning import FineTuning
from holdfast.unlearning.ft import FT

__all__ = ["L1Sparse"]


@dataclass(frozen=True, kw_only=True)
class L1Sparse(
    FineTuning,
    id="l1-sparse",
    title="Sparse unlearning by an l1 penalty",
    paper=Paper(title="Model Sparsity Can Simplify Machine Unlearning", arxiv="2304.04934", venue="NeurIPS", year=2023),
):
    """Fine-tuning whose loss adds the l1 norm of all weights, with a factor that falls linearly.

    Args:
        alpha: factor of the norm in the first epoch; search it between 1e-5 and 1e-2. With 0 it is `ft`.
        tail: last epochs that are without the penalty.
    """

    alpha: Annotated[float, Field(ge=0)] = 5e-4
    tail: Annotated[int, Field(ge=0)] = 0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is retained, or no epoch has the penalty.
        """
        if self.tail >= self.epochs:
            raise UserError(f"l1-sparse: tail must be less than the {self.epochs} epochs, got {self.tail}.")
        objective = _Penalised(self.alpha, self.epochs - self.tail)
        return self.tuned(model, retain, objective=objective, name=FT.id, run=run)


class _Penalised(Objective):
    """Cross-entropy and the l1 norm, whose factor in epoch e of E is ``alpha (1 - e / E)``."""

    def __init__(self, alpha: float, epochs: int):
        self.alpha, self.epochs = alpha, epochs

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        loss = F.cross_entropy(step.seen(model(x)), y)
        factor = self.alpha * max(0.0, 1 - step.epoch / self.epochs)
        if not factor:
            return loss
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        return loss + factor * torch.stack([weight.abs().sum() for weight in weights]).sum()

    def __str__(self) -> str:
        return f"cross-entropy with l1 norm, {self.alpha} over {self.epochs} epochs"
