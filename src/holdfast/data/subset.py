"""Subset: fewer images, with the classes in the same proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from holdfast.data.images import Images
from holdfast.data.splits import apportion
from holdfast.errors import UserError
from holdfast.methods import Transform
from holdfast.run import Run

__all__ = ["Subset"]


@dataclass(frozen=True, kw_only=True)
class Subset(Transform, id="subset", title="Stratified subset"):
    """Keeps a number or a share of the images, stratified by class, in their order.

    Args:
        n: how many to keep.
        fraction: which share to keep; give this or `n`.
        pick: ``random`` ones of each class, or the ``first``.
    """

    n: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    pick: Literal["random", "first"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.n is None) == (self.fraction is None):
            raise UserError(f"{self.id}: give either n or fraction, got {'neither' if self.n is None else 'both'}.")

    def __call__(self, images: Images, *, run: Run) -> Images:
        """The images that stay."""
        n = self.n if self.n is not None else max(1, round((self.fraction or 0) * len(images)))
        if n > len(images):
            raise UserError(
                f"{self.id}: n must be at most {len(images)}, the number of images in {images.name}, got {n}."
            )
        rng = run.rng("subset")
        sizes = torch.bincount(images.y, minlength=images.num_classes).tolist()
        kept = []
        for k, count in enumerate(apportion(n, sizes)):
            members = torch.nonzero(images.y == k).flatten()
            if self.pick == "random":
                members = members[torch.randperm(len(members), generator=rng)]
            kept.append(members[:count])
        return images.select(torch.cat(kept).sort().values)
