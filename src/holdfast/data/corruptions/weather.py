"""Weather: snow, frost, fog, brightness."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from holdfast.data.corruptions.filters import streak, zoomed
from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.corruptions.strength import length_unit, published

__all__ = ["brightness", "fog", "frost", "snow"]

Batch = Float[Tensor, "n c h w"]

_LUMA = (0.299, 0.587, 0.114)


def snow(x: Batch, severity: int, noise: Noise) -> Batch:
    """Bright flakes with a trail, falling from two sides, over a whitened image."""
    mean, sigma, zoom, least, radius, trail, keep = published(
        x,
        severity,
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    )
    unit = length_unit(x)
    layer = zoomed(mean + sigma * noise.normal(1, *x.shape[2:]), zoom * max(1.0, unit))
    layer = torch.where(layer < least, 0.0, layer).clamp(0, 1)
    angle = -(math.pi / 4) * (1 + 2 * noise.uniform(1)[:, 0])  # from -45 to -135 degrees: downwards
    layer = streak(layer, angle, 2 * radius * unit, trail * unit)
    grey = x if x.shape[1] == 1 else (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    white = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return white + layer + layer.rot90(2, (2, 3))


def frost(x: Batch, severity: int, noise: Noise) -> Batch:
    """A pane with crystals: feathers of ice in a cold tone, added to the dimmed image."""
    keep, add = published(
        x,
        severity,
        ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    )
    ice = _feathers(noise, x.shape[2], x.shape[3], x.device)
    # Photographs of frost, which the original pastes in, have tones from 0.4 to 0.85 and less red than blue.
    u = noise.uniform(3)
    level, contrast, cold = 0.5 + 0.35 * u[:, 0], 0.25 + 0.5 * u[:, 1], 0.3 * u[:, 2] ** 2
    pane = (level.view(-1, 1, 1) + contrast.view(-1, 1, 1) * (ice - 0.5))[:, None].clamp(0, 1)
    if x.shape[1] == 3:
        pane = pane * torch.stack([1 - cold, 1 - cold / 4, torch.ones_like(cold)], 1)[:, :, None, None]
    return keep * x + add * pane


def _feathers(noise: Noise, h: int, w: int, device: torch.device) -> Float[Tensor, "n h w"]:
    """Ridges of stretched, turned and bent value noise on three scales, in [0, 1]."""
    turn = math.pi * noise.uniform(1)[:, 0].view(-1, 1, 1)
    side = min(h, w)
    y = (torch.arange(h, device=device).view(1, h, 1) - (h - 1) / 2) / side
    x = (torch.arange(w, device=device).view(1, 1, w) - (w - 1) / 2) / side
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    bend = _value_noise(noise, u, v, 3, 3) - 0.5
    total, weight = torch.zeros_like(u + v), 0.0
    for scale, share in ((4, 0.3), (8, 0.4), (14, 0.3)):
        field = _value_noise(noise, u + 0.25 * bend, v + 0.4 * bend, scale, scale / 3)
        total = total + share * (1 - (2 * field - 1).abs()) ** 2
        weight += share
    return total / weight


def _value_noise(noise: Noise, u: Tensor, v: Tensor, across: float, along: float) -> Float[Tensor, "n h w"]:
    """Random values on a grid of `across` x `along` cells to the unit, smoothly filled in."""
    rows, columns = math.ceil(2.2 * across) + 2, math.ceil(2.2 * along) + 2
    grid = noise.uniform(1, rows, columns)
    at = torch.stack([v * (2 * along / (columns - 1)), u * (2 * across / (rows - 1))], -1)
    return F.grid_sample(grid, at, mode="bicubic", padding_mode="reflection", align_corners=True)[:, 0].clamp(0, 1)


def fog(x: Batch, severity: int, noise: Noise) -> Batch:
    """Plasma clouds added, and the whole dimmed back into range."""
    amount, decay = published(
        x,
        severity,
        ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    )
    h, w = x.shape[2:]
    clouds = _plasma(noise, 2 ** math.ceil(math.log2(max(h, w, 2))), decay)[:, None, :h, :w]
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * clouds) * most / (most + amount)


def _plasma(noise: Noise, side: int, decay: float) -> Float[Tensor, "n side side"]:
    """Diamond-square clouds in [0, 1] that wrap around (Fournier, Fussell and Carpenter, 1982); `side` a power of 2."""
    u = noise.uniform(side, side)  # the position in the picture decides a point's number, whatever its level
    field = torch.zeros_like(u)
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        shake = wobble**2 * (2 * u - 1)
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = (pairs + pairs.roll(-1, 2)) / 4 + shake[:, half::step, half::step]
        corners, centres = field[:, ::step, ::step], field[:, half::step, half::step]
        above = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        beside = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, ::step, half::step] = above / 4 + shake[:, ::step, half::step]
        field[:, half::step, ::step] = beside / 4 + shake[:, half::step, ::step]
        step, wobble = half, wobble / decay
    field = field - field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def brightness(x: Batch, severity: int, noise: Noise) -> Batch:
    """The value of the HSV colour raised; hue and saturation stay."""
    amount = published(x, severity, (0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5))
    value = x.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    # In HSV with hue and saturation fixed, the colour is proportional to the value; black has neither, and turns grey.
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-6)), raised)
