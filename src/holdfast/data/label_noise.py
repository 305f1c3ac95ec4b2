"""Label noise: a share of the labels is wrong, at random or by mistaking each class for the next.

Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
arXiv:1804.06872: symmetric flipping to any other class, and pair flipping to the class that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.methods import Paper, Transform
from holdfast.run import Run

__all__ = ["LabelNoise"]


@dataclass(frozen=True, kw_only=True)
class LabelNoise(
    Transform,
    id="label-noise",
    title="Label noise",
    paper=Paper(
        title="Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
        arxiv="1804.06872",
        venue="NeurIPS",
        year=2018,
    ),
):
    """Makes exactly the given share of each class's labels wrong; the column ``clean_label`` keeps the right ones.

    Args:
        rate: share of labels that become wrong.
        type: ``symmetric`` picks any other class, each as likely; ``asymmetric`` always the next class.
    """

    rate: Annotated[float, Field(ge=0, le=1)] = 0.4
    type: Literal["symmetric", "asymmetric"] = "symmetric"

    def __call__(self, images: Images, *, run: Run) -> Images:
        """The images with noisy labels."""
        if images.num_classes < 2:
            raise UserError(f"{self.id}: at least 2 classes are needed, {images.name} has {images.num_classes}.")
        rng = run.rng("label-noise")
        y = images.y.clone()
        for k in range(images.num_classes):
            members = torch.nonzero(images.y == k).flatten()
            wrong = members[torch.randperm(len(members), generator=rng)[: round(self.rate * len(members))]]
            if self.type == "asymmetric":
                shift = torch.ones(len(wrong), dtype=torch.int64)
            else:
                shift = torch.randint(1, images.num_classes, (len(wrong),), generator=rng)
            y[wrong] = (k + shift) % images.num_classes
        noisy = images.but(y=y)
        # Noise on top of noise: the right labels are those from before the first.
        return noisy if "clean_label" in images.columns else noisy.with_column("clean_label", images.y.clone())
