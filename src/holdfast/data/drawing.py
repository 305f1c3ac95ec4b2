"""How `shapes32` draws: shapes as signed distances, patterns as fields in [0, 1], edges smoothed by coverage.

All functions work on whole batches of coordinates (N, H, W). A signed distance is negative inside; dividing it by the
size of a pixel and clamping gives how much of the pixel is covered, which is what a smooth edge is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["PATTERNS", "SHAPES", "coverage", "pattern", "signed_distance"]

Field = Float[Tensor, "n h w"]


def _disc(x: Field, y: Field) -> Field:
    return torch.hypot(x, y) - 0.9


def _square(x: Field, y: Field) -> Field:
    return torch.maximum(x.abs(), y.abs()) - 0.78


def _triangle(x: Field, y: Field) -> Field:
    return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.5


def _star(x: Field, y: Field) -> Field:
    """Five points: every tenth of the circle is folded onto one edge, from a tip to the notch beside it."""
    sector = math.pi / 5
    angle = torch.atan2(x, -y).remainder(2 * sector)
    angle = torch.minimum(angle, 2 * sector - angle)
    radius = torch.hypot(x, y)
    px, py = radius * angle.cos(), radius * angle.sin()
    tip, notch = 1.1, 0.45
    nx, ny = notch * math.sin(sector), tip - notch * math.cos(sector)
    return ((px - tip) * nx + py * ny) / math.hypot(nx, ny)


def _cross(x: Field, y: Field) -> Field:
    wide = torch.maximum(x.abs() - 0.95, y.abs() - 0.3)
    return torch.minimum(wide, torch.maximum(x.abs() - 0.3, y.abs() - 0.95))


def _ring(x: Field, y: Field) -> Field:
    return (torch.hypot(x, y) - 0.7).abs() - 0.23


def _heart(x: Field, y: Field) -> Field:
    """A square on its tip with a disc on each upper side."""
    half = 0.52
    u, v = (x.abs() + (y - 0.1)) * math.sqrt(0.5), (x.abs() - (y - 0.1)) * math.sqrt(0.5)
    square = torch.maximum(u.abs(), v.abs()) - half
    return torch.minimum(square, torch.hypot(u, v - half) - half)


def _crescent(x: Field, y: Field) -> Field:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.82 - torch.hypot(x - 0.5, y))


def _hourglass(x: Field, y: Field) -> Field:
    return torch.maximum((x.abs() - 0.85 * y.abs() - 0.05) / math.hypot(1, 0.85), y.abs() - 0.88)


def _arrow(x: Field, y: Field) -> Field:
    shaft = torch.maximum((x + 0.35).abs() - 0.6, y.abs() - 0.22)
    head = torch.maximum(-x, (0.8 * (x - 1.0) + y.abs()) / math.hypot(0.8, 1))
    return torch.minimum(shaft, head)


SHAPES: Mapping[str, Callable[[Field, Field], Field]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "hourglass": _hourglass,
    "arrow": _arrow,
}


def _wave(t: Field) -> Field:
    """A square wave of period 1 with soft flanks."""
    return (0.5 + 1.5 * torch.sin(2 * math.pi * t)).clamp(0, 1)


def _plain(u: Field, v: Field, grain: Field) -> Field:
    return torch.zeros_like(u)


def _striped(u: Field, v: Field, grain: Field) -> Field:
    return _wave(u + 0.35 * v)


def _checked(u: Field, v: Field, grain: Field) -> Field:
    return (0.5 + 2.5 * torch.sin(math.pi * u) * torch.sin(math.pi * v)).clamp(0, 1)


def _dotted(u: Field, v: Field, grain: Field) -> Field:
    offset = torch.hypot(u.remainder(1) - 0.5, v.remainder(1) - 0.5)
    return (0.5 + 6 * (0.3 - offset)).clamp(0, 1)


def _speckled(u: Field, v: Field, grain: Field) -> Field:
    return grain


def _graded(u: Field, v: Field, grain: Field) -> Field:
    return (0.5 + 0.12 * (u + 0.5 * v)).clamp(0, 1)


def _clouded(u: Field, v: Field, grain: Field) -> Field:
    coarse = F.interpolate(grain[:, None, :6, :6], size=grain.shape[1:], mode="bicubic", align_corners=True)[:, 0]
    return (0.5 + 1.3 * (coarse - 0.5)).clamp(0, 1)


def _ringed(u: Field, v: Field, grain: Field) -> Field:
    return _wave(torch.hypot(u, v))


def _latticed(u: Field, v: Field, grain: Field) -> Field:
    line = torch.minimum((u.remainder(1) - 0.5).abs(), (v.remainder(1) - 0.5).abs())
    return (0.5 + 6 * (0.12 - line)).clamp(0, 1)


def _rayed(u: Field, v: Field, grain: Field) -> Field:
    return _wave(torch.atan2(v, u) * (7 / (2 * math.pi)))


# The first five also serve as textures of the shapes themselves.
PATTERNS: Mapping[str, Callable[[Field, Field, Field], Field]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "speckled": _speckled,
    "graded": _graded,
    "clouded": _clouded,
    "ringed": _ringed,
    "latticed": _latticed,
    "rayed": _rayed,
}


def signed_distance(kind: Int64[Tensor, " n"], x: Field, y: Field) -> Field:
    """Signed distance to the outline of shape number `kind`, in units of its radius; `y` points down."""
    distance = torch.empty_like(x)
    for number, shape in enumerate(SHAPES.values()):
        rows = torch.nonzero(kind == number).flatten()
        if len(rows):
            distance[rows] = shape(x[rows], y[rows])
    return distance


def pattern(kind: Int64[Tensor, " n"], u: Field, v: Field, grain: Field) -> Field:
    """Pattern number `kind` in [0, 1]; `u` and `v` count its periods, `grain` is uniform noise."""
    field = torch.empty_like(u)
    for number, draw in enumerate(PATTERNS.values()):
        rows = torch.nonzero(kind == number).flatten()
        if len(rows):
            field[rows] = draw(u[rows], v[rows], grain[rows])
    return field


def coverage(distance: Field, pixels: Tensor | float) -> Field:
    """How much of each pixel lies inside, from the distance and the number of pixels to its unit."""
    return (0.5 - distance * pixels).clamp(0, 1)
