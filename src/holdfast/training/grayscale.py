"""Grayscale: take the colour out of some training images, so that no class is known by colour alone.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709,
appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from holdfast.data.resize import recoloured
from holdfast.methods import BatchTransform, Paper

__all__ = ["Grayscale"]


@dataclass(frozen=True, kw_only=True)
class Grayscale(
    BatchTransform,
    id="grayscale",
    paper=Paper(
        title="A Simple Framework for Contrastive Learning of Visual Representations",
        arxiv="2002.05709",
        venue="ICML",
        year=2020,
    ),
):
    """Grey in place of colour, drawn for every image; grey images stay as they are.

    Args:
        p: probability that an image turns grey.
    """

    p: Annotated[float, Field(ge=0, le=1)] = 0.2

    def __call__(self, x: Tensor, y: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turn the drawn images of `x` (N, C, H, W) grey."""
        drawn = (torch.rand(len(x), generator=rng) < self.p).to(x.device, non_blocking=True)
        if x.shape[1] == 1:
            return x, y
        return torch.where(drawn[:, None, None, None], recoloured(x, 1), x), y
