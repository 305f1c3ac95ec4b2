"""In which order a split is used when only its first images are: its own, unless it is sorted by class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.data.images import Images

__all__ = ["fair_order", "first_images", "is_mixed"]


def fair_order(images: Images, rng: torch.Generator) -> Tensor | None:
    """The order in which the first images stand for all; ``None`` for the split's own.

    Taking a split's first images makes results comparable with other tools. Where the split is sorted by class, they
    would be of one class; such a split is put in random order.
    """
    return None if is_mixed(images.y, images.num_classes) else torch.randperm(len(images), generator=rng)


def first_images(images: Images, count: int | None, rng: torch.Generator) -> Images:
    """The first `count` images in `fair_order`, with the column ``index``: where each stands in the split."""
    order = fair_order(images, rng)
    index = torch.arange(len(images)) if order is None else order
    return images.with_column("index", torch.arange(len(images))).select(index[:count])


def is_mixed(y: Tensor, classes: int) -> bool:
    """Whether the beginnings of a split have about the class shares of the whole: a lenient chi-squared test."""
    total = torch.bincount(y, minlength=classes).double()
    used = total > 0
    freedom = max(int(used.sum()) - 1, 1)
    for count in {c for c in (64, len(y) // 16, len(y) // 4, len(y) // 2) if 0 < c < len(y)}:
        seen = torch.bincount(y[:count], minlength=classes).double()[used]
        expected = total[used] * count / len(y)
        if float(((seen - expected) ** 2 / expected).sum()) > freedom + 10 * math.sqrt(2 * freedom):
            return False
    return True
