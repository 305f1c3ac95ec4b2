"""Long tail: class sizes fall off, as they do outside of benchmarks.

Class k of K keeps ``n_max * rho^(-k / (K - 1))`` images (Cui et al., "Class-Balanced Loss Based on Effective Number of
Samples", CVPR 2019, arXiv:1901.05555, section 5.1), so that the first class is `rho` times the size of the last; or the
second half of the classes is `rho` times smaller (step imbalance, Buda et al., 2018, arXiv:1710.05381).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from holdfast.data.images import Images
from holdfast.methods import Paper, Transform
from holdfast.run import Run

__all__ = ["LongTail"]


@dataclass(frozen=True, kw_only=True)
class LongTail(
    Transform,
    id="long-tail",
    title="Long-tailed class sizes",
    paper=Paper(
        title="Class-Balanced Loss Based on Effective Number of Samples", arxiv="1901.05555", venue="CVPR", year=2019
    ),
):
    """Thins the classes out so that their sizes follow a long tail; which images stay is random.

    Args:
        rho: size of the largest class over that of the smallest.
        profile: ``exp`` falls from class to class, ``step`` halves the classes into large and small ones.
    """

    rho: Annotated[float, Field(ge=1, le=1e6)] = 100.0
    profile: Literal["exp", "step"] = "exp"

    def __call__(self, images: Images, *, run: Run) -> Images:
        """The images that stay, in their order; each class keeps at least one of those it has."""
        sizes = torch.bincount(images.y, minlength=images.num_classes)
        rng = run.rng("long-tail")
        kept = []
        for k, size in enumerate(self.sizes(int(sizes.max()) if len(images) else 0, images.num_classes)):
            members = torch.nonzero(images.y == k).flatten()
            kept.append(members[torch.randperm(len(members), generator=rng)[:size]])
        return images.select(torch.cat(kept).sort().values)

    def sizes(self, n_max: int, classes: int) -> list[int]:
        """The most images that each class may keep, from the largest class's size."""
        if self.profile == "step":
            falls = [float(k >= classes / 2) for k in range(classes)]
        else:
            falls = [k / max(1, classes - 1) for k in range(classes)]
        return [max(1, math.floor(n_max * self.rho**-fall + 1e-9)) for fall in falls]
