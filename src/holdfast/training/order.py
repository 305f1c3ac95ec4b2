"""In which order the images of a training come, and which of them make up a step.

Ordinarily an epoch is all images, shuffled. A training that treats two groups of images differently, such as those to
forget and those to retain, may need them in batches of their own, by turns. An order depends on the run's seed and the
epoch alone, so a resumed training needs no generator's state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from holdfast.run import Run

__all__ = ["Alternating", "InTurn", "Interleaved", "Order", "Shuffled", "steps_of"]


class Order(Protocol):
    """Says what each step of an epoch is made of. Its ``repr`` goes into the record of a training."""

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """The images of each step, as indices.

        Args:
            epoch: counted from 0.
            size: images per step, over all processes.
            least: a rest of fewer than twice as many is left out, for batch normalisation needs two in each process.
            run: gives the order.
        """

    def steps(self, epoch: int, size: int, least: int) -> int:
        """How many steps `batches` gives, without drawing anything."""


@dataclass(frozen=True)
class Shuffled:
    """All of `count` images, anew in each epoch."""

    count: int

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """See `Order`."""
        order = torch.randperm(self.count, generator=run.rng("order", epoch))
        return list(order.split(size))[: self.steps(epoch, size, least)]

    def steps(self, epoch: int, size: int, least: int) -> int:
        """See `Order`."""
        return steps_of(self.count, size, least)


@dataclass(frozen=True)
class InTurn:
    """In each epoch all of the first group, shuffled, then all of the second, and so on.

    Args:
        counts: images in each group; the groups stand one after the other in the training set.
        sizes: images per step of each group, at most as many as a step takes; ``None`` is that number.
        rounds: epochs that a group takes part in, from the first; ``None`` is all.
    """

    counts: Sequence[int]
    sizes: Sequence[int | None] = ()
    rounds: Sequence[int | None] = ()

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """See `Order`."""
        found: list[Tensor] = []
        for group, count in enumerate(self.counts):
            order = torch.randperm(count, generator=run.rng("order", epoch, group)) + sum(self.counts[:group])
            found += list(order.split(self._size(group, size)))[: self._steps(group, epoch, size, least)]
        return found

    def steps(self, epoch: int, size: int, least: int) -> int:
        """See `Order`."""
        return sum(self._steps(group, epoch, size, least) for group in range(len(self.counts)))

    def _size(self, group: int, size: int) -> int:
        own = self.sizes[group] if self.sizes else None
        return size if own is None else min(own, size)

    def _steps(self, group: int, epoch: int, size: int, least: int) -> int:
        rounds = self.rounds[group] if self.rounds else None
        if rounds is not None and epoch >= rounds:
            return 0
        return steps_of(self.counts[group], self._size(group, size), least)


@dataclass(frozen=True)
class Alternating:
    """An epoch of the second group, and a batch of the first before every `every`-th of its batches, from the first on.

    The first group's images come in an order that runs on over the epochs: all of them, then all of them anew.

    Args:
        counts: images in the two groups, which stand one after the other in the training set.
        every: batches of the second group between two of the first.
    """

    counts: tuple[int, int]
    every: int = 1

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """See `Order`."""
        first, second = self.counts
        rest = list((torch.randperm(second, generator=run.rng("order", epoch)) + first).split(size))
        found: list[Tensor] = []
        visits = self._visits(size, least)
        for place, batch in enumerate(rest[: steps_of(second, size, least)]):
            if place % self.every == 0:
                number = epoch * visits + place // self.every
                found.append(_stretch("order of the first group", first, number, min(size, first), run))
            found.append(batch)
        return found

    def steps(self, epoch: int, size: int, least: int) -> int:
        """See `Order`."""
        return steps_of(self.counts[1], size, least) + self._visits(size, least)

    def _visits(self, size: int, least: int) -> int:
        return math.ceil(steps_of(self.counts[1], size, least) / self.every)


@dataclass(frozen=True)
class Interleaved:
    """An epoch of the first group, and after each of its batches some of the second.

    The second group's images come in an order that runs on over the epochs: all of them, then all of them anew.

    Args:
        counts: images in the two groups, which stand one after the other in the training set.
        after: batches of the second group after each of the first.
    """

    counts: tuple[int, int]
    after: int = 1

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """See `Order`."""
        first, second = self.counts
        rounds = steps_of(first, size, least)
        found: list[Tensor] = []
        for place, batch in enumerate(torch.randperm(first, generator=run.rng("order", epoch)).split(size)[:rounds]):
            found.append(batch)
            for number in range(self.after):
                number += (epoch * rounds + place) * self.after
                found.append(first + _stretch("order of the second group", second, number, min(size, second), run))
        return found

    def steps(self, epoch: int, size: int, least: int) -> int:
        """See `Order`."""
        return steps_of(self.counts[0], size, least) * (1 + self.after)


def _stretch(name: str, count: int, number: int, size: int, run: Run) -> Tensor:
    """The batch of this number in an endless order of `count` images: all of them, then all of them anew."""
    rounds = range(number * size // count, (number * size + size - 1) // count + 1)
    orders = [torch.randperm(count, generator=run.rng(name, k)) for k in rounds]
    begin = number * size - rounds[0] * count
    return torch.cat(orders)[begin : begin + size]


def steps_of(count: int, size: int, least: int) -> int:
    """Steps that `count` images make.

    A rest of less than two images for each process is left out; where there is nothing else, one for each will do.
    """
    whole, rest = divmod(count, size)
    return whole + (1 if rest // least >= (2 if whole else 1) else 0)
