"""Stratified, reproducible splits: every class is shared out in the same proportions, to the nearest image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["FRACTIONS", "apportion", "split", "split_indices"]

# For data that come in one piece.
FRACTIONS: Mapping[str, float] = {"train": 0.6, "val": 0.15, "test": 0.25}


def split(images: Images, fractions: Mapping[str, float], run: Run) -> dict[str, Images]:
    """Share out `images` among named splits, stratified by class.

    Args:
        images: what to split.
        fractions: the share of each split, positive, at most 1 in sum; what is left over is dropped.
        run: gives the random stream ``split``.

    Returns:
        The splits by name, disjoint, each in the original order. A class with at least as many images as there are
        splits is kept in each of them.

    Raises:
        UserError: the fractions do not fit, or a split would be empty.
    """
    indices = split_indices(images.y, fractions, run, images.name)
    return {name: images.select(index, name=f"{images.name} {name}") for name, index in indices.items()}


def split_indices(
    y: Int64[Tensor, " n"], fractions: Mapping[str, float], run: Run, title: str = "split"
) -> dict[str, Int64[Tensor, " m"]]:
    """The positions that `split` gives to each split, ascending."""
    values = [float(f) for f in fractions.values()]
    if not values or not all(f > 0 and math.isfinite(f) for f in values) or sum(values) > 1 + 1e-9:
        shown = ", ".join(f"{name}={fraction:g}" for name, fraction in fractions.items())
        raise UserError(f"{title}: split fractions must be above 0 and at most 1 in sum, got {shown or 'none'}.")
    shares = [*values, max(0.0, 1 - sum(values))]
    rng = run.rng("split")
    chosen: list[list[Tensor]] = [[] for _ in values]
    # What earlier classes left a split short of decides between equal claims of later ones, so that the splits as a
    # whole come out right too.
    short = [0.0] * len(shares)
    for label in torch.unique(y).tolist():
        members = torch.nonzero(y == label).flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        counts = _each_one(apportion(len(members), shares, short), len(values))
        short = [s + len(members) * share - count for s, share, count in zip(short, shares, counts, strict=True)]
        for part, rows in zip(chosen, torch.split(members, counts), strict=False):
            part.append(rows)
    indices = {name: torch.cat(parts).sort().values for name, parts in zip(fractions, chosen, strict=True) if parts}
    empty = [name for name in fractions if name not in indices or not len(indices[name])]
    if empty:
        raise UserError(f"{title}: {len(y)} images are too few to split; {empty[0]!r} would be empty.")
    return indices


def apportion(total: int, weights: Sequence[float], short: Sequence[float] | None = None) -> list[int]:
    """Share out `total` in proportion to `weights` by largest remainder (Hamilton's method).

    Args:
        total: what is shared out.
        weights: of each part, not negative, with a positive sum.
        short: added to each part's remainder when the last places are given.

    Returns:
        One whole number for each part, each within 1 of its exact share, `total` in sum.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(e + 1e-9) for e in exact]
    claims = [
        e - c + (short[i] if short else 0.0) if e > c + 1e-9 else -math.inf
        for i, (e, c) in enumerate(zip(exact, counts, strict=True))
    ]
    for place in sorted(range(len(counts)), key=lambda i: (-claims[i], i))[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _each_one(counts: list[int], named: int) -> list[int]:
    """Give each of the first `named` parts at least 1, taken from the largest part, where there are enough."""
    if sum(counts) < named:
        return counts
    counts = list(counts)
    while 0 in counts[:named]:
        # The unnamed rest gives first, then whoever has most.
        giver = named if len(counts) > named and counts[named] else counts.index(max(counts))
        counts[giver] -= 1
        counts[counts.index(0)] += 1
    return counts
