"""Companions: sets of images whose batches accompany those of the training set.

Outliers to be unsure about, images to forget beside those to keep, images without labels: an objective names the
companions it needs, and the user gives them. Which images come when depends on the seed and the step alone, as with the
training set, so a resumed training sees the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.methods import Objective
from holdfast.run import Run

__all__ = ["Stream", "check_companions"]


class Stream:
    """A companion's images in an endless order: all of them shuffled, then all of them shuffled anew.

    Unlike an epoch's, the order runs on: a set larger than the training set is used up to its last image, and a
    smaller one does not shorten the epoch.

    Args:
        name: of the companion.
        images: at least one.
        size: how many of them belong to a whole batch.
        run: gives the order.
    """

    def __init__(self, *, name: str, images: Images, size: int, run: Run):
        self.name, self.images, self.size, self.run = name, images, size, run
        self._shuffled: tuple[int, Tensor] | None = None

    def indices(self, slot: int, count: int) -> Tensor:
        """Which images belong to a batch, int64 (count,).

        Args:
            slot: the number of the batch, over all steps, parts and processes.
            count: at most `size`; the rest of a whole batch's share is passed over.
        """
        first = slot * self.size
        rounds = range(first // len(self.images), (first + max(count, 1) - 1) // len(self.images) + 1)
        order = torch.cat([self._round(number) for number in rounds])
        begin = first - rounds[0] * len(self.images)
        return order[begin : begin + count]

    def _round(self, number: int) -> Tensor:
        """The order of one round through the images, kept until another is asked for."""
        if self._shuffled is None or self._shuffled[0] != number:
            rng = self.run.rng("companion", self.name, number)
            self._shuffled = number, torch.randperm(len(self.images), generator=rng)
        return self._shuffled[1]


def check_companions(objective: Objective, given: Mapping[str, Images], images: Images) -> None:
    """Verify that the companions are those that the objective needs.

    Raises:
        UserError: one is missing, superfluous, empty, or of other shape than the training images.
    """
    needed = objective.companions
    for name in needed:
        if name not in given:
            raise UserError(
                f"{objective.id}: it needs images named {name!r} beside the training set; give them to fit as "
                f"companions={{{name!r}: images}}, or in a recipe as 'companions: {{{name}: ...}}'."
            )
    for name, companion in given.items():
        if name not in needed:
            takes = f"it takes {', '.join(needed)}" if needed else "it takes none"
            raise UserError(f"{objective.id}: {name!r} is not a companion of this objective; {takes}.")
        if not len(companion):
            raise UserError(f"{companion.name}: there are no images to accompany the training as {name!r}.")
        if companion.shape != images.shape:
            shapes = ["x".join(map(str, shape)) for shape in (companion.shape, images.shape)]
            raise UserError(f"{companion.name}: images of shape {shapes[0]} cannot accompany those of {shapes[1]}.")
