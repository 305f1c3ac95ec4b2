"""Random numbers that belong to an image, not to its place in a batch."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.run import uniform_at

__all__ = ["Noise"]


class Noise:
    """The random numbers of a batch of images, drawn one after the other from each image's own stream.

    Args:
        seed: of the corruption.
        keys: one per image, from `holdfast.run.content_keys`.
    """

    def __init__(self, seed: int, keys: Int64[Tensor, " n"]):
        self._seed, self._keys, self._drawn = seed, keys, 0

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Uniform in [0, 1), of the given shape for each image."""
        count = math.prod(shape)
        numbers = uniform_at(self._seed, self._keys, count, offset=self._drawn)
        self._drawn += count
        return numbers.view(len(self._keys), *shape)

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal (Box and Muller, 1958), of the given shape for each image."""
        count = math.prod(shape)
        half = -(-count // 2)
        u = self.uniform(2 * half)
        radius = (-2 * torch.log1p(-u[:, :half])).sqrt_()
        angle = u[:, half:].mul(2 * math.pi)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return both[:, :count].view(len(self._keys), *shape)
