"""Cutout: black out a square of each training image, so that no single part can be relied on.

DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, arXiv:1708.04552.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast.methods import BatchTransform, Paper

__all__ = ["Cutout"]


@dataclass(frozen=True, kw_only=True)
class Cutout(
    BatchTransform,
    id="cutout",
    paper=Paper(
        title="Improved Regularization of Convolutional Neural Networks with Cutout", arxiv="1708.04552", year=2017
    ),
):
    """A black square, centred anywhere in the image, so that part of it may lie outside.

    Args:
        size: side of the square in pixels; the paper takes 16 on CIFAR-10.
    """

    on_bytes: ClassVar[bool] = True

    size: Annotated[int, Field(ge=1)] = 16

    def __call__(self, x: Tensor, y: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Black out a square of each image of `x` (N, C, H, W)."""
        n, _, height, width = x.shape
        inside = []
        for side in (height, width):
            first = torch.randint(side, (n, 1), generator=rng) - self.size // 2
            place = torch.arange(side)
            inside.append((place >= first) & (place < first + self.size))
        hole = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x.device, non_blocking=True)
        return x.masked_fill(hole, 0), y
