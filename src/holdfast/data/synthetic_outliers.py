"""Synthetic outliers: images that belong to no class, made of those that do, to train with.

Outlier exposure needs outliers, and who has none at hand can make some. They must not be of the kind that detectors are
tested on, or the test shows what was taught: none of these is among the sets of `holdfast.data.ood_sets`.

Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv:1812.04606, appendix A, for the first
two kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from holdfast.data.drawing import SHAPES
from holdfast.data.images import Images, to_float
from holdfast.data.resize import fitted
from holdfast.data.shapes32 import COLOURS, DOMAINS, Shapes32
from holdfast.errors import UserError
from holdfast.methods import Paper, Transform
from holdfast.run import Run

__all__ = ["SyntheticOutliers", "jigsaw", "mixed_pairs", "unlike_test_shapes"]

Kind = Literal["jigsaw", "mixed", "shapes"]


@dataclass(frozen=True, kw_only=True)
class SyntheticOutliers(
    Transform,
    id="synthetic-outliers",
    title="Synthetic outliers",
    paper=Paper(title="Deep Anomaly Detection with Outlier Exposure", arxiv="1812.04606", venue="ICLR", year=2019),
):
    """One outlier for every image, of the kinds in turn; their labels mean nothing.

    ``jigsaw`` shuffles the tiles of an image, ``mixed`` averages it with one of another class, and ``shapes`` draws
    sketched, dark and tiled shapes. Those in the test sets are painted; where these too would be too much alike, leave
    ``shapes`` out.

    Args:
        kinds: of outliers, each for an equal part of the images.
        tiles: of the jigsaw, along each side.
    """

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("jigsaw", "mixed", "shapes")
    tiles: Annotated[int, Field(ge=2)] = 4

    def __call__(self, images: Images, *, run: Run) -> Images:
        """As many outliers as there are images, in their shape and type.

        Raises:
            UserError: the images are too small for the tiles, or are of one class, which gives no pairs.
        """
        if min(images.shape[1:]) < self.tiles:
            raise UserError(f"{self.id}: tiles must be at most {min(images.shape[1:])} for {images.name}.")
        rng = run.rng(self.id)
        order = torch.randperm(len(images), generator=rng)
        x = torch.empty_like(images.x)
        for place, kind in enumerate(self.kinds):
            rows = order[place :: len(self.kinds)]
            if not len(rows):
                continue
            if kind == "jigsaw":
                x[rows] = jigsaw(images.x[rows], self.tiles, rng)
            elif kind == "mixed":
                x[rows] = mixed_pairs(images, rows, rng)
            else:
                x[rows] = unlike_test_shapes(images, len(rows), run)
        return Images(x=x, y=torch.zeros_like(images.y), classes=("unknown",), name=f"{images.name} {self}")


def jigsaw(x: Shaped[Tensor, "n c h w"], tiles: int, rng: torch.Generator) -> Shaped[Tensor, "n c h w"]:
    """Each image with its tiles, `tiles` along each side, in another order; pixels beyond whole tiles stay."""
    n, c = x.shape[:2]
    h, w = x.shape[2] // tiles, x.shape[3] // tiles
    order = torch.rand(n, tiles * tiles, generator=rng).argsort(1)
    same = (order == torch.arange(tiles * tiles)).all(1, keepdim=True)
    order = torch.where(same, order.roll(1, 1), order)
    whole = x[:, :, : h * tiles, : w * tiles].reshape(n, c, tiles, h, tiles, w).permute(0, 2, 4, 1, 3, 5)
    pieces = whole.reshape(n, tiles * tiles, c, h, w)[torch.arange(n)[:, None], order]
    shuffled = x.clone()
    shuffled[:, :, : h * tiles, : w * tiles] = (
        pieces.view(n, tiles, tiles, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h * tiles, w * tiles)
    )
    return shuffled


def mixed_pairs(images: Images, rows: Tensor, rng: torch.Generator) -> Shaped[Tensor, "m c h w"]:
    """The images at `rows`, each averaged with a random one of another class.

    Raises:
        UserError: there is but one class.
    """
    partners = torch.empty_like(rows)
    for label in images.y[rows].unique().tolist():
        others = (images.y != label).nonzero().flatten()
        if not len(others):
            raise UserError(f"synthetic-outliers: {images.name} is of one class, and pairs need images of two.")
        mine = images.y[rows] == label
        partners[mine] = others[torch.randint(len(others), (int(mine.sum()),), generator=rng)]
    first, second = images.x[rows], images.x[partners]
    if images.x.dtype == torch.uint8:
        return ((first.short() + second.short() + 1) // 2).to(torch.uint8)
    return (first + second) / 2


def unlike_test_shapes(images: Images, count: int, run: Run) -> Shaped[Tensor, "m c h w"]:
    """Drawn shapes in the shape and type of the images, in none of the looks of `holdfast.data.ood_sets`.

    Only the second half of the shapes and of the colours, and every style but painting, which is the only one there.
    """
    drawn = _Unlike(seed=run.seed_for("synthetic-outliers", "shapes"), domains=len(DOMAINS) - 1).draw("train", count)
    channels, height, width = images.shape
    x = fitted(drawn.x, (height, width), channels)
    return x if images.x.dtype == torch.uint8 else to_float(x).to(images.x.dtype)


class _Unlike(Shapes32):
    """Shapes and colours of the second half of their lists, in all styles but the first."""

    def _look(self, seed: int, index: Tensor, spurious: float) -> dict[str, Tensor]:
        look = super()._look(seed, index, spurious)
        for name, count in (("shape", len(SHAPES)), ("colour", len(COLOURS))):
            half = count // 2
            look[name] = half + look[name] % (count - half)
        return {**look, "domain": look["domain"] + 1}
