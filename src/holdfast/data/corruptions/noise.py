"""Noise of the sensor: Gaussian (low light), shot (few photons), impulse (dead and hot pixels)."""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy  # its modules load on first use
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.corruptions.strength import published

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]

Batch = Float[Tensor, "n c h w"]


def gaussian_noise(x: Batch, severity: int, noise: Noise) -> Batch:
    """Normal noise on every value."""
    sigma = published(x, severity, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return x + sigma * noise.normal(*x.shape[1:])


def shot_noise(x: Batch, severity: int, noise: Noise) -> Batch:
    """Poisson counts of photons, of which white gives `photons`.

    The counts are drawn by inversion: the distribution functions of the 256 levels stand one after the other in one
    ascending table, each raised by its level, so that a single search finds all counts.
    """
    photons = published(x, severity, (500.0, 250.0, 100.0, 75.0, 50.0), (60.0, 25.0, 12.0, 5.0, 3.0))
    table = _poisson_table(photons).to(x.device)
    level = x.mul(255).round_()
    place = torch.searchsorted(table.flatten(), level.double() + noise.uniform(*x.shape[1:]), right=True)
    return (place - level.long() * table.shape[1]).float() / photons


@functools.lru_cache(maxsize=16)
def _poisson_table(photons: float) -> Float[Tensor, "256 k"]:
    most = math.ceil(photons + 10 * math.sqrt(photons) + 20)
    levels = np.arange(256)[:, None]
    return torch.from_numpy(levels + scipy.special.pdtr(np.arange(most), levels / 255 * photons))


def impulse_noise(x: Batch, severity: int, noise: Noise) -> Batch:
    """Salt and pepper: a share of the values becomes 0 or 1, equally often."""
    share = published(x, severity, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    u = noise.uniform(*x.shape[1:])
    return torch.where(u < share / 2, 0.0, torch.where(u >= 1 - share / 2, 1.0, x))
