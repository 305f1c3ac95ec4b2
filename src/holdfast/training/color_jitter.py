"""Colour jitter: change brightness, contrast, saturation and hue of training images, as light and cameras do.

Howard, "Some Improvements on Deep Convolutional Neural Network Based Image Classification", 2013, arXiv:1312.5402, with
the hue and the strengths of Chen et al., ICML 2020, arXiv:2002.05709, appendix A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.data.resize import recoloured
from holdfast.methods import BatchTransform, Paper

__all__ = ["ColorJitter", "hue_turned"]

Strength = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ColorJitter(
    BatchTransform,
    id="color-jitter",
    title="Colour jitter",
    paper=Paper(
        title="Some Improvements on Deep Convolutional Neural Network Based Image Classification",
        arxiv="1312.5402",
        year=2013,
    ),
):
    """Four changes, each drawn for every image, in an order drawn for every batch.

    Of grey images only brightness and contrast change.

    Args:
        brightness: the image is multiplied by a factor from ``1 - brightness`` to ``1 + brightness``.
        contrast: the distance to the image's mean grey is, likewise.
        saturation: the distance of each pixel to its own grey is, likewise.
        hue: the largest turn of the colour circle, either way; 0.5 is half of it.
        p: probability that an image is changed at all.
    """

    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    p: Annotated[float, Field(ge=0, le=1)] = 0.8

    def __call__(self, x: Tensor, y: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change the drawn images of `x`, float (N, C, H, W) in [0, 1]."""
        order = torch.randperm(4, generator=rng).tolist()
        drawn, *amounts = torch.rand(5, len(x), 1, 1, 1, generator=rng).to(x.device, non_blocking=True)
        changes: list[tuple[float, Callable[[Tensor, Tensor], Tensor]]] = [
            (self.brightness, lambda image, by: image * (1 + by)),
            (self.contrast, lambda image, by: _spread(image, recoloured(image, 1).mean((2, 3), keepdim=True), by)),
            (self.saturation, lambda image, by: _spread(image, recoloured(image, 1), by)),
            (self.hue, hue_turned),
        ]
        changed = x
        for k in order:
            strength, change = changes[k]
            if strength and (k < 2 or x.shape[1] == 3):
                changed = change(changed, strength * (2 * amounts[k] - 1)).clamp(0, 1)
        return torch.where(drawn < self.p, changed, x), y


def _spread(x: Tensor, centre: Tensor, by: Tensor) -> Tensor:
    """`x` moved away from `centre` by a share of its distance."""
    return centre + (1 + by) * (x - centre)


def hue_turned(x: Float[Tensor, "n 3 h w"], by: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 h w"]:
    """Colours in [0, 1] at another place of the colour circle, of the same value and saturation.

    Args:
        x: red, green, blue.
        by: of a full turn.
    """
    value, channel = x.max(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    scale = chroma.clamp_min(1e-8)
    sixth = torch.where(
        channel == 0,
        (green - blue) / scale,
        torch.where(channel == 1, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    place = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + sixth + 6 * by
    place = place.remainder(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
