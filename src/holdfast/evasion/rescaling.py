"""Perturbations stretched or shrunk to a given l_2 norm, within the same l_inf ball and the box.

As the factor grows, one pixel after the other reaches its bound and stays there. In between, the squared norm is a
quadratic in the factor, so that the factor for any norm follows from one sort.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Rescaling"]


class Rescaling:
    """Perturbations of N images, ready to be scaled.

    Args:
        x: the images, float32 in [0, 1].
        delta: what was added to them.
        eps: radius of the l_inf ball.
    """

    def __init__(self, x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n c h w"], eps: float):
        self.delta = delta
        room = torch.where(delta > 0, 1 - x, x)
        # Never less than the perturbation itself, which rounding may have left a little outside.
        self.bound = torch.maximum(room.clamp_max(eps), delta.abs()) * (delta != 0)
        size, bound = delta.abs().flatten(1).double(), self.bound.flatten(1).double()
        self._knee, order = (bound / size).nan_to_num(0.0).sort(1)
        size, bound = size.gather(1, order) ** 2, bound.gather(1, order) ** 2
        # When the first i pixels are at their bounds: what they contribute, and what the others do per factor squared.
        none = torch.zeros(len(x), 1, dtype=torch.float64)
        self._full = torch.cat([none, bound.cumsum(1)], 1)
        self._rest = torch.cat([size.flip(1).cumsum(1).flip(1), none], 1)
        self._norm = (self._full[:, :-1] + self._knee**2 * self._rest[:, :-1]).cummax(1).values  # squared, at the knees

    @property
    def corner(self) -> Float[Tensor, " n"]:
        """The largest norm there is, with every pixel that was moved at its bound."""
        return self._full[:, -1].sqrt()

    def factor(self, norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """By how much to multiply to get the norm; infinite where it cannot be reached."""
        goal = norm.double() ** 2
        full = torch.searchsorted(self._norm, goal[:, None]).squeeze(1)  # pixels at their bounds
        rest, done = (values.gather(1, full[:, None]).squeeze(1) for values in (self._rest, self._full))
        factor = ((goal - done).clamp_min(0) / rest).sqrt()
        return torch.where(norm.double() < self.corner, factor, torch.inf)

    def scaled(self, factor: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """The perturbations multiplied and clipped; a factor of 1 gives them back bit for bit."""
        column = factor.view(-1, 1, 1, 1)
        grown = (self.delta * column.clamp_max(torch.finfo(torch.float32).max).float()).abs()
        size = torch.minimum(torch.where(column.isinf(), self.bound, grown), self.bound)
        return torch.copysign(size, self.delta)

    def to_norm(self, norm: Float[Tensor, " n"] | float) -> Float[Tensor, "n c h w"]:
        """The perturbations at the norm, or at their corner where they cannot reach it."""
        goal = torch.as_tensor(norm, dtype=torch.float64).expand(len(self.delta))
        return self.scaled(self.factor(goal))
