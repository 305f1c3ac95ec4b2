"""How models are trained, as a value: what shadow models must share with the model that is attacked."""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Callback, Objective, OptimizerWrapper
from holdfast.run import Run
from holdfast.training import SGD, CrossEntropy, Flip, OneCycle, Optimizer, Recipe, Schedule, fit

__all__ = ["FitRecipe", "Trainer", "said_in_full", "views_of"]


class Trainer(Protocol):
    """Anything that trains a model: `FitRecipe`, or a function of one's own."""

    def __call__(self, model: nn.Module, images: Images, *, run: Run) -> nn.Module:
        """Train `model`, which is new and may be changed, on `images`, and return it."""


@dataclass(frozen=True, kw_only=True)
class FitRecipe:
    """Training by `holdfast.training.fit`; the arguments are those, and methods may be given as specs.

    Args:
        epochs, batch_size, objective, optimizer, schedule, wrapper, callbacks, transforms, accumulate, ema: see `fit`.
    """

    epochs: int
    batch_size: int = 128
    objective: Objective | str = CrossEntropy()
    optimizer: Optimizer | str = SGD()
    schedule: Schedule | str = OneCycle()
    wrapper: OptimizerWrapper | str | None = None
    callbacks: Sequence[Callback | str] = ()
    transforms: Sequence[BatchTransform | str] = ()
    accumulate: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        built = {
            "objective": catalog.build(self.objective, kind=Objective),
            "optimizer": catalog.build(self.optimizer, kind=Optimizer),
            "schedule": catalog.build(self.schedule, kind=Schedule),
            "wrapper": None if self.wrapper is None else catalog.build(self.wrapper, kind=OptimizerWrapper),
            "callbacks": tuple(catalog.build(c, kind=Callback) for c in self.callbacks),
            "transforms": tuple(catalog.build(t, kind=BatchTransform) for t in self.transforms),
        }
        for name, value in built.items():
            object.__setattr__(self, name, value)

    def __call__(self, model: nn.Module, images: Images, *, run: Run) -> nn.Module:
        """Train; returns the average of the weights where there is one, else the model."""
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fit(model, images, run=run, **arguments).final_model

    @classmethod
    def of(cls, recipe: Recipe) -> FitRecipe:
        """The training that a recipe in YAML describes.

        Raises:
            UserError: the recipe does more than train a new model on the images as they are.
        """
        more = {"weights": recipe.weights, "companions": recipe.companions, "transforms": recipe.data_transforms()}
        for name, given in more.items():
            if given:
                raise UserError(
                    f"shadow models start anew, from the images as they are; the {name} of this recipe cannot be "
                    "followed. Train them from Python, with a function of your own."
                )
        if recipe.objective and catalog.build(recipe.objective, kind=Objective).columns:
            raise UserError(
                f"shadow models cannot be trained by {recipe.objective}, which needs columns of the images."
            )
        return cls(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            wrapper=recipe.wrapper,
            callbacks=recipe.callbacks,
            transforms=recipe.batch_transforms(),
            accumulate=recipe.accumulate,
            ema=recipe.ema,
        )


def views_of(recipe: Trainer) -> tuple[str, ...]:
    """The views that a training makes worth asking for: the image, and its mirror image where training mirrors.

    What was not trained on tells nothing of membership, and blurs what does: on digits, asking for mirror images as
    well took 0.02 to 0.05 from the AUC of every attack.
    """
    mirrors = isinstance(recipe, FitRecipe) and any(isinstance(t, Flip) for t in recipe.transforms)
    return ("identity", "flip") if mirrors else ("identity",)


def said_in_full(value: object) -> str | None:
    """Everything a recipe or an unlearner depends on, in words; ``None`` for code that does not say.

    A dataclass says all by its ``repr``, unless that holds the place of an object in memory.
    """
    if not dataclasses.is_dataclass(value):
        return None
    text = repr(value)
    return None if " at 0x" in text else text
