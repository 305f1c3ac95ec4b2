"""What most unlearners share: they train a copy of the model, on images that are marked as to forget or to retain."""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images, concat
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Unlearner
from holdfast.models.features import logits_of
from holdfast.run import Run
from holdfast.training import SGD, Constant, Crop, Flip, Optimizer, Schedule, fit

__all__ = ["FORGET", "FineTuning", "Teacher", "Tuning", "check_request", "grouped"]

FORGET = "forget"  # the column, bool (N,), that marks the images to forget


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The fields of a method that trains copies of a model, whatever its kind.

    Args:
        epochs: passes over the images it trains on.
        batch_size: images per step.
        optimizer: its learning rate decides how much is forgotten, and how much is lost besides.
        schedule: of the learning rate.
        crop, flip: augmentation of natural images; ``none`` where it does not fit, such as flipping digits.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 256
    optimizer: Optimizer = SGD(lr=0.01, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = Constant()
    crop: BatchTransform | None = Crop(padding=4)
    flip: BatchTransform | None = Flip()

    def trained(self, model: nn.Module, images: Images, *, run: Run, **named: Any) -> nn.Module:
        """A trained copy of `model`, in evaluation mode.

        Args:
            model: left as it was.
            images: to train on.
            run: device, precision, seed, folder.
            named: further arguments of `fit`.
        """
        return fit(
            copy.deepcopy(model),
            images,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
            transforms=[transform for transform in (self.crop, self.flip) if transform is not None],
            run=run,
            **named,
        ).model


@dataclass(frozen=True, kw_only=True)
class FineTuning(Tuning, Unlearner):
    """An unlearner that trains a copy of the model; subclasses say on what, and to what end."""

    def tuned(self, model: nn.Module, images: Images, *, name: str = "", run: Run, **named: Any) -> nn.Module:
        """As `trained`, in a stream and a folder of its own.

        Args:
            model, images, run, named: see there.
            name: of the stream and the folder; the method's id by default.
        """
        return self.trained(model, images, run=run.child(name or self.id), **named)


class Teacher:
    """A model that is asked and does not learn: a frozen copy, which answers in the precision of the training.

    Args:
        model: left as it was.
    """

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "n c h w"], run: Run) -> Float[Tensor, "n k"]:
        """Its logits (N, K), float32."""
        with run.autocast():
            return logits_of(self.model.to(x.device), x).float()


def check_request(forget: Images, retain: Images) -> None:
    """Verify that there is something to forget and something to retain.

    Raises:
        UserError: one of the two is empty, or they are not of one kind.
    """
    if not len(forget):
        raise UserError("unlearning: the forget set is empty, so there is nothing to do.")
    if not len(retain):
        raise UserError("unlearning: nothing is retained; to forget everything, start from a new model.")
    if forget.shape != retain.shape or forget.classes != retain.classes:
        raise UserError(
            f"unlearning: the images of {forget.name} (forget) and {retain.name} (retain) differ in shape or classes."
        )


def grouped(forget: Images, retain: Images) -> Images:
    """Both sets in one, those to forget first, with a column that marks them.

    Raises:
        UserError: as `check_request`.
    """
    check_request(forget, retain)
    marked = [
        part.but(columns={FORGET: torch.full((len(part),), value)}) for part, value in ((forget, True), (retain, False))
    ]
    return concat(*marked, name=retain.name)


def wrong_labels(y: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """For each label another one, uniformly.

    Raises:
        UserError: there is no other class.
    """
    if classes < 2:
        raise UserError("unlearning: with a single class there is no wrong label.")
    shift = torch.randint(1, classes, y.shape, generator=rng).to(y.device)
    return (y + shift) % classes
