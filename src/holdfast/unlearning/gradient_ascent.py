"""Gradient ascent: undo the training on the forget set by walking up its loss.

It needs nothing but the forget set and a few seconds. The loss has no upper bound, so a few steps too many destroy the
model: hence the small learning rate, the clipped gradient, and a ceiling. Batch normalisation keeps its statistics: on
batches of a single class, new ones would wreck the network at once.

Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine Unlearning", EuroS&P 2022, arXiv:2109.13398;
recipe of Jia et al., arXiv:2304.04934, with the clipping and the frozen statistics of Huang et al., arXiv:2409.19732.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.methods import Callback, Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, ClipGradient, Optimizer, Step
from holdfast.unlearning.fine_tuning import FineTuning, check_request

__all__ = ["GradientAscent"]


@dataclass(frozen=True, kw_only=True)
class GradientAscent(
    FineTuning,
    id="gradient-ascent",
    title="Gradient ascent on the forget set",
    paper=Paper(
        title="Unrolling SGD: Understanding Factors Influencing Machine Unlearning",
        arxiv="2109.13398",
        venue="EuroS&P",
        year=2022,
    ),
):
    """Maximise the loss of the forget set; the retained images are not looked at.

    Args:
        epochs: passes over the forget set.
        clip: largest norm of the gradient; ``none`` for no limit.
        ceiling: it stops after an epoch whose mean loss exceeded this many times ``log(classes)``, the loss of a guess.
    """

    epochs: Annotated[int, Field(ge=1)] = 5
    optimizer: Optimizer = SGD(lr=1e-4, momentum=0.9, nesterov=False, weight_decay=5e-4)
    clip: Annotated[float, Field(gt=0)] | None = None
    ceiling: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        check_request(forget, retain)
        callbacks: list[Callback] = [_StopAt(self.ceiling * math.log(forget.num_classes))]
        if self.clip is not None:
            callbacks.append(ClipGradient(norm=self.clip))
        return self.tuned(model, forget, objective=_Ascent(), callbacks=callbacks, mode="eval", run=run)


class _Ascent(Objective):
    """Minus the cross-entropy."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return -F.cross_entropy(step.seen(model(x)), y)

    def __str__(self) -> str:
        return "gradient ascent"


class _StopAt(Callback):
    """Ends the training when the forget set's loss has reached a ceiling."""

    def __init__(self, ceiling: float):
        self.ceiling = ceiling

    def __str__(self) -> str:
        return f"stop at a loss of {self.ceiling}"

    def on_epoch(self, state: Any) -> None:
        state.stop |= -state.metrics["train_loss"] > self.ceiling
