"""`shapes32`: drawn colour pictures of ten shapes, in any number, for the ground truth that real sets lack.

Shape (the class), colour, texture, background, group and domain are drawn independently of each other, except that one
of them may be tied to the class in training by a chosen strength: the shortcut whose effect is to be studied. Every
number belongs to a picture's index, so the first thousand of a larger set are the set of a thousand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from holdfast.data.drawing import PATTERNS, SHAPES, coverage, pattern, signed_distance
from holdfast.data.images import Data, Images
from holdfast.data.source import Source
from holdfast.run import Run, Ticker, uniform_at

__all__ = ["BACKGROUNDS", "COLOURS", "DOMAINS", "GROUPS", "TEXTURES", "Shapes32"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.97, 0.87, 0.18),
    "lime": (0.60, 0.90, 0.20),
    "green": (0.10, 0.55, 0.20),
    "cyan": (0.20, 0.85, 0.88),
    "blue": (0.13, 0.28, 0.85),
    "purple": (0.50, 0.16, 0.70),
    "pink": (0.98, 0.50, 0.74),
    "brown": (0.46, 0.26, 0.10),
}
TEXTURES = tuple(PATTERNS)[:5]
BACKGROUNDS = tuple(PATTERNS)
GROUPS = ("solid", "faint")
DOMAINS = ("painting", "sketch", "night", "mosaic")

_CHUNK = 1000
_NUMBERS = 24


@dataclass(frozen=True, kw_only=True)
class Shapes32(Source):
    """Drawn colour pictures of ten shapes; bytes, shape (N, 3, size, size).

    Columns: ``colour``, ``texture``, ``background``, ``group`` (1 is faint), ``domain`` (all int64, by the tuples of
    this module), ``aligned`` (whether the attribute is the class's own), ``mask`` (bool, (N, size, size)), ``caption``.

    Args:
        n: training pictures; a tenth as many are added for validation and a fifth as many for the test.
        seed: of the pictures. The splits are independent of each other.
        size: side in pixels.
        spurious: strength with which `attribute` is tied to the class in train and val: with this probability it takes
            the class's own value, else any. The test split is always untied.
        attribute: what is tied.
        minority: share of the faint group, whose shapes let the background through.
        domains: how many of the styles occur, in equal parts.
        rotation: the most a shape is turned either way, in degrees.
    """

    id: ClassVar[str] = "shapes32"

    n: Annotated[int, Field(ge=20, le=100_000_000)] = 10_000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    size: Annotated[int, Field(ge=12, le=1024)] = 32
    spurious: Annotated[float, Field(ge=0, le=1)] = 0.0
    attribute: Literal["background", "colour", "texture"] = "background"
    minority: Annotated[float, Field(ge=0, le=1)] = 0.2
    domains: Annotated[int, Field(ge=1, le=4)] = 1
    rotation: Annotated[float, Field(ge=0, le=180)] = 20.0

    def __call__(self, *, run: Run) -> Data:
        """Draw the three splits."""
        counts = {"train": self.n, "val": max(10, self.n // 10), "test": max(10, self.n // 5)}
        with run.track(sum(counts.values()), "drawing shapes32") as ticker:
            splits = {}
            for name, count in counts.items():
                splits[name] = self.draw(name, count, ticker)
        return Data(name="shapes32", train=splits["train"], val=splits["val"], test=splits["test"])

    def draw(self, name: str, count: int, ticker: Ticker | None = None) -> Images:
        """Draw `count` pictures of the split ``train``, ``val`` or ``test``."""
        seed = Run(seed=self.seed, scope=("shapes32", name)).seed_for("pictures")
        index = torch.arange(count)
        look = self._look(seed, index, 0.0 if name == "test" else self.spurious)
        x = torch.empty((count, 3, self.size, self.size), dtype=torch.uint8)
        mask = torch.empty((count, self.size, self.size), dtype=torch.bool)
        for rows in index.split(_CHUNK):
            x[rows], mask[rows] = self._draw(seed, rows, {key: value[rows] for key, value in look.items()})
            if ticker is not None:
                ticker.advance(len(rows))
        y = look.pop("shape")
        columns: dict[str, Any] = {**look, "mask": mask, "caption": _captions(y, look)}
        return Images(x=x, y=y, classes=tuple(SHAPES), columns=columns, name=f"shapes32 {name}")

    def _look(self, seed: int, index: Int64[Tensor, " n"], spurious: float) -> dict[str, Tensor]:
        """What each picture shows."""
        u = uniform_at(seed, index, 8)
        y = index % len(SHAPES)
        look: dict[str, Tensor] = {"shape": y}
        options = {"colour": len(COLOURS), "texture": len(TEXTURES), "background": len(BACKGROUNDS)}
        for place, (name, count) in enumerate(options.items()):
            look[name] = (u[:, place] * count).long()
        own = y % options[self.attribute]
        look[self.attribute] = torch.where(u[:, 3] < spurious, own, look[self.attribute])
        look["group"] = (u[:, 4] < self.minority).long()
        look["domain"] = (u[:, 5] * self.domains).long()
        look["aligned"] = look[self.attribute] == own
        return look

    def _draw(
        self, seed: int, index: Int64[Tensor, " n"], look: dict[str, Tensor]
    ) -> tuple[UInt8[Tensor, "n 3 h w"], Bool[Tensor, "n h w"]]:
        side, n = self.size, len(index)
        u = uniform_at(seed, index, _NUMBERS, offset=8)[:, :, None, None]
        grain = uniform_at(seed, index, side * side, offset=8 + _NUMBERS).view(n, side, side)
        # Pixel centres, in sides of the picture from its centre.
        axis = (torch.arange(side) + 0.5) / side - 0.5
        px, py = axis.view(1, 1, side).expand(n, side, side), axis.view(1, side, 1).expand(n, side, side)
        radius = 0.27 + 0.13 * u[:, 0]
        dx, dy = px - 0.24 * (u[:, 1] - 0.5), py - 0.24 * (u[:, 2] - 0.5)
        turn = math.radians(self.rotation) * (2 * u[:, 3] - 1)
        sx, sy = (dx * turn.cos() + dy * turn.sin()) / radius, (dy * turn.cos() - dx * turn.sin()) / radius
        distance = signed_distance(look["shape"], sx, sy)
        cover = coverage(distance, radius * side)

        colour = torch.tensor(list(COLOURS.values()))[look["colour"]][:, :, None, None]
        colour = (colour + 0.08 * (u[:, 4:7] - 0.5)).clamp(0, 1)
        period = 2.0 + 1.0 * u[:, 7]
        weave = pattern(look["texture"], sx * period + u[:, 8], sy * period + u[:, 9], grain)[:, None]
        shape = colour * (1 - 0.55 * weave)

        ground = self._ground(look["background"], colour, u, px, py, grain)
        opacity = torch.where(look["group"] == 1, 0.45, 1.0).view(-1, 1, 1, 1)
        alpha = cover[:, None] * opacity
        picture = _styled(look["domain"], alpha * shape + (1 - alpha) * ground, distance, radius * side, grain)
        return picture.mul(255).round_().clamp_(0, 255).to(torch.uint8), cover > 0.5

    def _ground(
        self, kind: Tensor, colour: Tensor, u: Tensor, px: Tensor, py: Tensor, grain: Tensor
    ) -> Float[Tensor, "n 3 h w"]:
        """The background: two muted tones, dark behind bright shapes and light behind dark ones, in a pattern."""
        turn = 2 * math.pi * u[:, 10]
        count = 4.0 + 2.5 * u[:, 11]
        gu = (px * turn.cos() + py * turn.sin()) * count + u[:, 12] - 0.5
        gv = (py * turn.cos() - px * turn.sin()) * count + u[:, 13] - 0.5
        field = pattern(kind, gu, gv, grain.flip(2))[:, None]
        bright = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True) > 0.5
        tint = 0.16 * (u[:, 14:17] - 0.5)
        level = torch.where(bright, 0.10 + 0.12 * u[:, 17:18], 0.80 + 0.12 * u[:, 17:18])
        step = torch.where(bright, 0.22, -0.24)
        return (level + tint + step * field).clamp(0, 1)


def _styled(kind: Tensor, picture: Tensor, distance: Tensor, pixels: Tensor, grain: Tensor) -> Tensor:
    """The picture in the style of its domain."""
    side = picture.shape[-1]
    for number, name in enumerate(DOMAINS):
        rows = torch.nonzero(kind == number).flatten()
        if not len(rows) or name == "painting":
            continue
        part, noise = picture[rows], grain[rows][:, None] - 0.5
        if name == "sketch":  # the outline alone, in pencil on paper
            width = max(0.8, side / 40)
            line = (width + 0.5 - (distance[rows] * pixels[rows]).abs()).clamp(0, 1)[:, None]
            part = (0.93 + 0.05 * noise - 0.75 * line).expand(-1, 3, -1, -1)
        elif name == "night":
            part = part * torch.tensor([0.35, 0.40, 0.60]).view(1, 3, 1, 1) + 0.08 * noise
        else:
            tiles = max(8, side // 2)
            part = F.interpolate(F.adaptive_avg_pool2d(part, tiles), size=side, mode="nearest")
        picture[rows] = part.clamp(0, 1)
    return picture


def _captions(y: Tensor, look: dict[str, Tensor]) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """``"a painting of a faint red striped star on a dotted background"``."""
    names = (tuple(SHAPES), tuple(COLOURS), TEXTURES, BACKGROUNDS, GROUPS, DOMAINS)
    numbers = zip(
        y.tolist(),
        *(look[key].tolist() for key in ("colour", "texture", "background", "group", "domain")),
        strict=True,
    )
    captions = []
    for row in numbers:
        shape, colour, texture, background, group, domain = (options[i] for options, i in zip(names, row, strict=True))
        what = f"{'faint ' if group == 'faint' else ''}{colour} {texture} {shape}"
        captions.append(f"a {domain} of a {what} on a {background} background")
    return np.asarray(captions)
