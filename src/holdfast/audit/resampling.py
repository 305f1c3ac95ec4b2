"""Bootstrap intervals of what several checks report, by counting how often each image is drawn.

A resample is a count per image. Where one image gives several numbers (one per corruption), they are drawn together, so
that the interval knows of their correlation; and a thousand resamples are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.predictions import Predictions

__all__ = ["draws", "mean_ece", "percentiles"]

Floats = NDArray[np.float64]
_CHUNK = 2_000_000  # counts held at once


def draws(n: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Counts (R', n) of how often each of `n` images is drawn, in chunks that make `resamples` rows together."""
    rows = max(1, min(resamples, _CHUNK // n))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)


def percentiles(values: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_ece(
    cells: Sequence[Predictions], *, rng: np.random.Generator, resamples: int, bins: int = 15
) -> tuple[float, float, float]:
    """The mean calibration error over several predictions of the same images, with its interval.

    A binned error is biased upwards, and that of a resample twice: the percentile interval would lie too high. The
    basic bootstrap mirrors it back; it is widened, where needed, to hold the estimate that is printed beside it.

    Args:
        cells: each of the same N images.
        rng: for the resampling.
        resamples: their number.
        bins: of equal mass, found once for each cell.

    Returns:
        the value, and the ends of its interval.
    """
    n = len(cells[0])
    value = float(np.mean([stats.ece(cell.confidence, cell.correct, bins) for cell in cells]))
    # ECE = sum over bins of |sum of (correct - confidence)| / N: sorted by bin, the inner sums are slices.
    sorted_cells = []
    for cell in cells:
        order = np.argsort(cell.confidence, kind="stable")
        edges = np.searchsorted(cell.confidence[order], cell.confidence[order][[n * b // bins for b in range(1, bins)]])
        starts = np.unique(np.concatenate([[0], edges]))
        sorted_cells.append((order, (cell.correct - cell.confidence)[order], starts[starts < n]))
    means = []
    for counts in draws(n, resamples, rng):
        errors = [
            np.abs(np.add.reduceat(counts[:, order] * residual, starts, axis=1)).sum(1) / n
            for order, residual, starts in sorted_cells
        ]
        means.append(np.mean(errors, axis=0))
    low, high = percentiles(np.concatenate(means))
    return value, max(0.0, min(2 * value - high, value)), max(2 * value - low, value)
