"""How strong a corruption is: the published constants of both benchmarks, carried to other image sizes.

Images with sides below 96 take the constants of CIFAR-10-C (32x32), larger ones those of ImageNet-C (224x224). Lengths
grow with the side from where they were published; below 32 pixels they stay, or they would vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

__all__ = ["length_unit", "published", "side_of"]

T = TypeVar("T")

_SMALL, _LARGE, _BETWEEN = 32, 224, 96


def side_of(x: Tensor) -> int:
    """The shorter side of images (N, C, H, W)."""
    return min(x.shape[-2:])


def published(x: Tensor, severity: int, small: Sequence[T], large: Sequence[T]) -> T:
    """The constant for `severity` in 1..5 from the benchmark whose images are nearer in size to `x`."""
    return (small if side_of(x) < _BETWEEN else large)[severity - 1]


def length_unit(x: Tensor) -> float:
    """What a published length in pixels must be multiplied by for images of this size."""
    side = side_of(x)
    return max(1.0, side / _SMALL) if side < _BETWEEN else side / _LARGE
