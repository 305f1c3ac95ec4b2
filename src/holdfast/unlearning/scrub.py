"""SCRUB: a student that departs from its teacher on the forget set and stays with it on the rest.

Both start as the trained model. In the first epochs a pass over the forget set drives the student's predictions away
from the teacher's; after each, and alone in the last epochs, a pass over the retained images brings it back to teacher
and labels.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv:2302.09880, section 3 and algorithm 1.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, InTurn, MultiStep, Optimizer, Schedule, Step
from holdfast.unlearning.fine_tuning import FORGET, FineTuning, Teacher, grouped

__all__ = ["SCRUB"]


@dataclass(frozen=True, kw_only=True)
class SCRUB(
    FineTuning,
    id="scrub",
    title="SCRUB",
    paper=Paper(title="Towards Unbounded Machine Unlearning", arxiv="2302.09880", venue="NeurIPS", year=2023),
):
    """Alternate departing from the teacher on the forget set and following it on the retained images.

    Args:
        max_epochs: as many epochs, from the first, begin with a pass over the forget set.
        forget_batch: images per step of those passes.
        gamma: weight of the cross-entropy on the retained images.
        alpha: weight of their divergence from the teacher.
        temperature: of both divergences.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = SGD(lr=5e-4, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = MultiStep(at=(0.3, 0.5, 0.9), gamma=0.1)
    max_epochs: Annotated[int, Field(ge=0)] = 2
    forget_batch: Annotated[int, Field(ge=1)] = 128
    gamma: Annotated[float, Field(ge=0)] = 0.99
    alpha: Annotated[float, Field(ge=0)] = 0.001
    temperature: Annotated[float, Field(gt=0)] = 4.0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        order = InTurn((len(forget), len(retain)), sizes=(self.forget_batch, None), rounds=(self.max_epochs, None))
        return self.tuned(model, grouped(forget, retain), objective=_MaxMin(model, self), order=order, run=run)


class _MaxMin(Objective):
    """Minus the divergence from the teacher for images to forget; for the others cross-entropy and divergence."""

    columns = (FORGET,)

    def __init__(self, teacher: nn.Module, method: SCRUB):
        self.teacher, self.method = Teacher(teacher), method

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        m = self.method
        logits = step.seen(model(x))
        divergence = distillation(self.teacher(x, step.run), logits, m.temperature)
        if step.columns[FORGET].any():
            return -divergence
        return m.gamma * F.cross_entropy(logits, y) + m.alpha * divergence

    def __str__(self) -> str:
        return str(self.method)


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of logits (N, K) at a temperature, the mean over images."""
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
