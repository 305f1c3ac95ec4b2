"""What guards share: a model behind something that answers in its place.

A guard is a surgery: `(model) -> Guarded`. It says how an attacker sees it who knows it, so that it can be attacked
with and without that knowledge; see `holdfast.evasion.adaptive`. A `TrainedGuard` first learns something from data,
the model's weights staying as they are:

    guarded = CAVP(epochs=8).train(model, images, run=run)
    save_guard(guarded, "guard.safetensors")
    guarded = CAVP(weights="guard.safetensors")(model)
"""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Surgery
from holdfast.models import read_weights, save_tensors
from holdfast.run import Run

__all__ = ["Guarded", "TrainedGuard", "learned", "save_guard"]

_SAID_OF_A_MODEL = ("architecture", "num_classes", "image_shape", "classes")


class Guarded(nn.Module):
    """A copy of a model behind a guard. Subclasses give `forward`, and `adaptive` where there is better to attack.

    What the model says of itself (its architecture, classes and image shape) the guarded model says too.

    Args:
        model: to be guarded; it is copied, with its weights and modes.
        guard: the method, for the printed form, which tells guarded models apart.
    """

    def __init__(self, model: nn.Module, guard: Surgery):
        super().__init__()
        # What has no weights, such as a model behind an address, has nothing to be kept apart, and may hold a budget.
        self.model = copy.deepcopy(model) if next(model.parameters(), None) is not None else model
        self.guard: Any = guard
        for name in _SAID_OF_A_MODEL:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.training = model.training

    def adaptive(self) -> nn.Module:
        """What an attacker who knows the guard searches on: differentiable, with the guarded model's labels.

        By default the model behind the guard.
        """
        inner: nn.Module = self.model
        return inner

    @property
    def detection(self) -> nn.Module:
        """What of it tells images of no class: itself, unless it keeps a branch for that."""
        return self

    def extra_repr(self) -> str:
        """The guard's spec."""
        return str(self.guard)


class TrainedGuard(Surgery):
    """A guard with something learned from data. Subclasses give `untrained`, `train` and the field `weights`.

    Everything a guarded model holds beside the model itself, parameters and buffers, is what was learned.
    """

    weights: str | None

    def __call__(self, model: nn.Module) -> Guarded:
        """The guarded copy of the model, with what was learned read from `weights`.

        Raises:
            UserError: no file is named, or it does not hold what this guard learns for such a model.
        """
        if self.weights is None:
            raise UserError(
                f"{self.id}: weights must name the file that `holdfast harden {self.id}` has written, got none."
            )
        guarded = self.untrained(model)
        wanted, file = learned(guarded), read_weights(self.weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
        found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
        if found != shapes:
            at = next(name for name in sorted({*shapes, *found}) if shapes.get(name) != found.get(name))
            raise UserError(
                f"{self.weights}: this is not what {self} learns for this model: {at} should be "
                f"{shapes.get(at, 'absent')}, and is {found.get(at, 'absent')}."
            )
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(file.tensors[name])
        return guarded

    @abstractmethod
    def untrained(self, model: nn.Module) -> Guarded:
        """The model behind the guard as it is before it has learned anything."""

    @abstractmethod
    def train(self, model: nn.Module, images: Images, *, run: Run) -> Guarded:
        """Learn from images with their labels; the model is left as it was."""


def learned(guarded: Guarded) -> dict[str, Tensor]:
    """What a guard has learned: the tensors of the guarded model, by name, without those of the model behind it."""
    return {name: tensor for name, tensor in guarded.state_dict().items() if not name.startswith("model.")}


def save_guard(guarded: Guarded, path: str | os.PathLike[str]) -> None:
    """Write what a guard has learned to a safetensors file, whole or not at all."""
    save_tensors(learned(guarded), path, {"guard": str(guarded.guard)})
