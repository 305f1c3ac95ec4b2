"""What guards share: a model behind something that answers in its place.

A guard is a surgery: `(model) -> Guarded`. It says how an attacker sees it who knows it, so that it can be attacked
with and without that knowledge; see `holdfast.evasion.adaptive`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from holdfast.methods import Surgery

__all__ = ["Guarded"]

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

    def extra_repr(self) -> str:
        """The guard's spec."""
        return str(self.guard)
