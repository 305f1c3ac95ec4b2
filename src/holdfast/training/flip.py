"""Random flip: mirror each training image, left to right, with some probability.

The standard augmentation of natural images since Krizhevsky et al., "ImageNet Classification with Deep Convolutional
Neural Networks", NeurIPS 2012. Not for digits and letters, whose mirror images mean something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast.methods import BatchTransform, Paper

__all__ = ["Flip"]


@dataclass(frozen=True, kw_only=True)
class Flip(
    BatchTransform,
    id="flip",
    paper=Paper(title="ImageNet Classification with Deep Convolutional Neural Networks", venue="NeurIPS", year=2012),
):
    """Random horizontal flip, drawn for every image.

    Args:
        p: probability that an image is mirrored.
    """

    on_bytes: ClassVar[bool] = True

    p: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __call__(self, x: Tensor, y: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror the drawn images of `x` (N, C, H, W)."""
        mirrored = (torch.rand(len(x), generator=rng) < self.p).to(x.device, non_blocking=True)
        return torch.where(mirrored[:, None, None, None], x.flip(3), x), y
