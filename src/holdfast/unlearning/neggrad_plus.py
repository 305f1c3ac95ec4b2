"""NegGrad+: walk up the loss of the forget set while walking down that of the retained images.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv:2302.09880, who name this baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import Step
from holdfast.unlearning.fine_tuning import FORGET, FineTuning, check_request
from holdfast.unlearning.ft import FT

__all__ = ["NegGradPlus"]


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(
    FineTuning,
    id="neggrad-plus",
    title="NegGrad+",
    paper=Paper(title="Towards Unbounded Machine Unlearning", arxiv="2302.09880", venue="NeurIPS", year=2023),
):
    """Descent on the retained images and ascent on the forget set, in one step.

    Args:
        alpha: weight of the retained images' loss; that of the forget set, with a minus, is ``1 - alpha``. With 1 it is
            fine-tuning. Published values lie between 0.95 and 0.9999.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.95

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        check_request(forget, retain)
        return self.tuned(model, retain, objective=_Both(self.alpha), companions={FORGET: forget}, name=FT.id, run=run)


class _Both(Objective):
    """The weighted difference of the two losses; each set in a pass of its own, so that their statistics do not mix."""

    companions = (FORGET,)

    def __init__(self, alpha: float):
        self.alpha = alpha

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        kept = F.cross_entropy(step.seen(model(x)), y)
        if self.alpha == 1:
            return kept
        forget = step.companions[FORGET]
        return self.alpha * kept - (1 - self.alpha) * F.cross_entropy(model(forget.x).float(), forget.y)

    def __str__(self) -> str:
        return f"neggrad+ with alpha {self.alpha}"
