"""Bad teacher: a student learns the forget set from a teacher who knows nothing, and the rest from the trained model.

The ignorant teacher is the same architecture with random weights. What the student takes from it is not error but
ignorance; on random subsets it nevertheless over-forgets, since an image like the retained ones would be recognised by
a model that has never seen it.

Chundawat et al., "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher", AAAI
2023, arXiv:2205.08096, equations 2 and 3.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.methods import Objective, Paper
from holdfast.models import reinitialised
from holdfast.run import Run
from holdfast.training import SGD, Optimizer, Step
from holdfast.unlearning.fine_tuning import FORGET, FineTuning, Teacher, grouped
from holdfast.unlearning.scrub import distillation

__all__ = ["BadTeacher"]


@dataclass(frozen=True, kw_only=True)
class BadTeacher(
    FineTuning,
    id="bad-teacher",
    title="Bad teacher",
    paper=Paper(
        title="Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher",
        arxiv="2205.08096",
        venue="AAAI",
        year=2023,
    ),
):
    """Distil from an ignorant teacher on the forget set and from the trained model on the retained images.

    The divergence is a mean over images; the authors' code divides it by the number of classes besides, so that their
    learning rates are to be divided by it. No labels are used.

    Args:
        temperature: of teachers and student.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    optimizer: Optimizer = SGD(lr=0.002, momentum=0.9, nesterov=False, weight_decay=5e-4)
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten or retained, or the model cannot be reinitialised.
        """
        ignorant = reinitialised(model, run=run.child(self.id))
        objective = _TwoTeachers(model, ignorant, self)
        return self.tuned(model, grouped(forget, retain), objective=objective, run=run)


class _TwoTeachers(Objective):
    """The divergence from the one or the other."""

    columns = (FORGET,)

    def __init__(self, competent: nn.Module, ignorant: nn.Module, method: BadTeacher):
        self.competent, self.ignorant, self.method = Teacher(competent), Teacher(ignorant), method

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        forget = step.columns[FORGET]
        target = self.competent(x, step.run)
        if forget.any():
            target[forget] = self.ignorant(x[forget], step.run)
        temperature = self.method.temperature
        # The square of the temperature that `distillation` multiplies by belongs to SCRUB alone.
        return distillation(target, step.seen(model(x)), temperature) / temperature**2

    def __str__(self) -> str:
        return str(self.method)
