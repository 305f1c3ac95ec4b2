"""Selective synaptic dampening: shrink the weights that matter far more to the forget set than to the rest.

No training, and done in seconds.

Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024,
arXiv:2308.07707, equations 7 and 8. The label-free variant, which measures how a weight moves the size of the output,
is of Foster et al., "Loss-Free Machine Unlearning", 2024, arXiv:2402.19308.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images, concat
from holdfast.methods import Paper, Unlearner
from holdfast.run import Run
from holdfast.unlearning.fine_tuning import check_request
from holdfast.unlearning.gradients import Gradients, importance

__all__ = ["SSD"]


@dataclass(frozen=True, kw_only=True)
class SSD(
    Unlearner,
    id="ssd",
    title="Selective synaptic dampening",
    paper=Paper(
        title="Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        arxiv="2308.07707",
        venue="AAAI",
        year=2024,
    ),
):
    """Dampen weights by the ratio of their importance to all training images and to the forget set.

    Args:
        alpha: a weight is dampened where the forget set's importance exceeds this many times that of all images.
        strength: the ratio is multiplied by it; smaller dampens more. ``lambda`` in the paper. No weight ever grows.
        batch_size: images per gradient, in both sets: the importances depend on it.
        measure: importance is the squared gradient of the ``"loss"``, or, without labels, the absolute gradient of the
            squared norm of the ``"output"``.
    """

    alpha: Annotated[float, Field(gt=0)] = 10.0
    strength: Annotated[float, Field(ge=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 64
    measure: Literal["loss", "output"] = "loss"

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        check_request(forget, retain)
        run = run.child(self.id)
        everything = concat(retain.but(columns={}), forget.but(columns={}))
        of_all, of_forget = (self._importance(model, images, run) for images in (everything, forget))
        dampened = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, weight in dampened.named_parameters():
                if name in of_forget:
                    weight.mul_(self.factor(of_all[name], of_forget[name]).to(weight.device))
        return dampened

    def _importance(self, model: nn.Module, images: Images, run: Run) -> Gradients:
        if self.measure == "loss":
            return importance(model, images, run=run, batch_size=self.batch_size)
        return importance(model, images, run=run, batch_size=self.batch_size, loss=_squared_norm, power=1)

    def factor(self, of_all: Tensor, of_forget: Tensor) -> Tensor:
        """What each weight is multiplied by, in [0, 1], from its two importances."""
        chosen = of_forget > self.alpha * of_all
        ratio = self.strength * of_all / torch.where(chosen, of_forget, 1)
        return torch.where(chosen, ratio.clamp(max=1), torch.ones_like(ratio))


def _squared_norm(logits: Tensor, y: Tensor) -> Tensor:
    return logits.square().sum(1).mean()
