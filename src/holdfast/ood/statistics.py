"""Means and covariances of features, in one place and in float64, for the detectors that model where features lie.

Sums over images are taken in float64 from chunks, centred first: a covariance made from raw second moments loses its
small eigenvalues to rounding, and those are what detectors read. Nothing larger than a chunk is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.errors import UserError
from holdfast.models import Features

__all__ = ["ClassStatistics", "chunks", "class_statistics", "covariance", "inverse_root", "mean_of"]

_CHUNK = 8192  # rows in float64 at a time


@dataclass(frozen=True)
class ClassStatistics:
    """Where the features of each class lie.

    Args:
        classes: int64 (C,), the labels that occur.
        counts: int64 (C,), their images.
        means: float64 (C, D).
        mean: float64 (D,), of all images.
        within: float64 (D, D), the mean over images of the outer product of their deviation from their class's mean.
        total: float64 (D, D), likewise from the mean of all.
    """

    classes: Int64[Tensor, " c"]
    counts: Int64[Tensor, " c"]
    means: Float[Tensor, "c d"]
    mean: Float[Tensor, " d"]
    within: Float[Tensor, "d d"]
    total: Float[Tensor, "d d"]


def class_statistics(features: Features) -> ClassStatistics:
    """Statistics of the penultimate features by label, worked out once for all detectors that are fitted on them."""
    return features.once("class statistics", lambda: _class_statistics(features))


def _class_statistics(features: Features) -> ClassStatistics:
    assert features.penultimate is not None
    h, y = features.penultimate, features.y
    classes, place, counts = y.unique(return_inverse=True, return_counts=True)
    sums = h.new_zeros((len(classes), h.shape[1]), dtype=torch.float64)
    for rows, part in chunks(h):
        sums.index_add_(0, place[rows], part)
    means = sums / counts[:, None]
    mean = sums.sum(0) / len(h)
    within = covariance(h, lambda rows: means[place[rows]])
    between = (means - mean) * (counts / len(h)).sqrt()[:, None]
    return ClassStatistics(classes, counts, means, mean, within, within + between.T @ between)


def chunks(h: Float[Tensor, "n d"]) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """The rows of a matrix in float64, some thousands at a time, and where they stand."""
    for start in range(0, len(h), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(h)))
        yield rows, h[rows].double()


def mean_of(h: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The mean row, float64."""
    total = h.new_zeros(h.shape[1], dtype=torch.float64)
    for _, part in chunks(h):
        total += part.sum(0)
    return total / len(h)


def covariance(
    h: Float[Tensor, "n d"], centre: Float[Tensor, " d"] | Callable[[slice], Tensor]
) -> Float[Tensor, "d d"]:
    """The mean outer product of the rows' deviations from a centre, float64.

    Args:
        h: the rows.
        centre: one for all rows, or a function of the rows' positions.
    """
    total = h.new_zeros((h.shape[1], h.shape[1]), dtype=torch.float64)
    for rows, part in chunks(h):
        deviation = part - (centre(rows) if callable(centre) else centre)
        total.addmm_(deviation.T, deviation)
    return total / len(h)


def inverse_root(covariance: Float[Tensor, "d d"], who: str) -> Float[Tensor, "d r"]:
    """A matrix A with ``A A^T`` the pseudo-inverse of a covariance: ``x A`` has unit variance in every direction.

    Directions in which the features do not vary, such as those of dead units, are left out rather than blown up.

    Args:
        covariance: symmetric, positive semi-definite.
        who: needs it, for the message.

    Raises:
        UserError: nothing varies at all.
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps * 1e3
    if not bool(kept.any()) or float(values[-1]) <= 0:
        raise UserError(f"{who}: the training features are all alike, so there is nothing to learn from them.")
    return vectors[:, kept] / values[kept].sqrt()
