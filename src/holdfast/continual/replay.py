"""What learners share: they train a copy of the model; those that replay forget by an unlearner of choice."""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from holdfast.continual.learner import ContinualLearner
from holdfast.continual.memory import Memory
from holdfast.continual.request import Request
from holdfast.data import Images
from holdfast.methods import Objective, Unlearner
from holdfast.run import Run
from holdfast.training import SGD, CrossEntropy, Optimizer
from holdfast.unlearning import RandomLabel
from holdfast.unlearning.fine_tuning import Tuning

__all__ = ["Replay", "Trained"]


@dataclass(frozen=True, kw_only=True)
class Trained(Tuning, ContinualLearner):
    """A learner that trains a copy of the model; subclasses say how.

    Args:
        epochs: passes over the images to learn.
        batch_size: of them per step.
        optimizer, schedule: of the weights; both begin anew with each request.
    """

    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 32
    optimizer: Optimizer = SGD(lr=0.03, momentum=0.0, nesterov=False, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class Replay(Trained):
    """A learner that rehearses what it remembers while it learns. Where both are asked, it forgets first.

    Args:
        unlearner: what it forgets by; the memory stands for all that is to be retained.
    """

    unlearner: Unlearner = RandomLabel()

    def __call__(self, model: nn.Module, request: Request, memory: Memory, *, run: Run) -> nn.Module:
        """Forget, then learn. Without a memory it learns by plain fine-tuning."""
        if request.forget is not None:
            model = self.unlearner(model, request.forget, memory.images, run=run.child("forget"))
        if request.learn is not None:
            objective, companions = self.rehearsal(memory) if len(memory) else (CrossEntropy(), {})
            model = self.trained(
                model, request.learn, objective=objective, companions=companions, run=run.child("learn")
            )
        return model

    @abstractmethod
    def rehearsal(self, memory: Memory) -> tuple[Objective, Mapping[str, Images]]:
        """The objective while there is a memory, and the images of it that accompany the training."""
