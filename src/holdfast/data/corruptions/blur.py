"""Blur: out of focus, through frosted glass, by motion, by zooming while exposing."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.data.corruptions.filters import convolve, disc_kernel, gaussian_blur, streak, zoomed
from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.corruptions.strength import length_unit, published

__all__ = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]

Batch = Float[Tensor, "n c h w"]


def defocus_blur(x: Batch, severity: int, noise: Noise) -> Batch:
    """Every point becomes a soft-edged disc."""
    radius, soft = published(
        x,
        severity,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    )
    unit = length_unit(x)
    return convolve(x, disc_kernel(radius * unit, soft * max(1.0, unit)))


def glass_blur(x: Batch, severity: int, noise: Noise) -> Batch:
    """Blurred, each pixel replaced by one nearby, some rounds of that, and blurred again."""
    sigma, reach, rounds = published(
        x,
        severity,
        ((0.5, 1, 1), (0.4, 1, 1), (0.25, 1, 1), (0.4, 1, 2), (0.25, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    )
    n, c, h, w = x.shape
    unit = length_unit(x)
    reach = max(1, round(reach * unit))
    row = torch.arange(h, device=x.device).view(1, h, 1)
    column = torch.arange(w, device=x.device).view(1, 1, w)
    x = gaussian_blur(x, sigma * unit)
    for _ in range(rounds):
        step = (noise.uniform(2, h, w) * (2 * reach)).long() - reach  # from -reach to reach - 1, as in the original
        place = (row + step[:, 0]).clamp(0, h - 1) * w + (column + step[:, 1]).clamp(0, w - 1)
        x = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, c, -1)).view(n, c, h, w)
    return gaussian_blur(x, sigma * unit)


def motion_blur(x: Batch, severity: int, noise: Noise) -> Batch:
    """A trail in a direction of the image's own, up to 45 degrees from the horizontal."""
    radius, sigma = published(
        x,
        severity,
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    )
    angle = (noise.uniform(1)[:, 0] - 0.5) * (math.pi / 2)
    return streak(x, angle, 2 * radius * length_unit(x), sigma * length_unit(x))


def zoom_blur(x: Batch, severity: int, noise: Noise) -> Batch:
    """The mean of the image enlarged by factors from 1 upwards."""
    most, step = published(
        x,
        severity,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    )
    factors = [1 + step * i for i in range(math.ceil((most - 1) / step - 1e-9))]
    total = x.clone()
    for factor in factors:
        total += zoomed(x, factor)
    return total / (len(factors) + 1)
