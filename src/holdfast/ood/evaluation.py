"""How well anomaly scores tell two sets apart: AUROC, AUPR and FPR95, both ways round, with intervals.

"FPR95" alone is ambiguous, and the two readings differ: either 95 % of the in-distribution images are accepted and the
share of out-of-distribution ones among the accepted is asked for, or 95 % of the out-of-distribution images are flagged
and the share of in-distribution ones that are flagged with them. Both are given, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast import stats
from holdfast.errors import UserError

__all__ = ["Separation", "separation"]

_TARGET = 0.95


@dataclass(frozen=True)
class Separation:
    """How well a detector separates in-distribution (ID) from out-of-distribution (OOD) images.

    Args:
        auroc: chance that an OOD image scores above an ID one, ties one half; 0.5 is chance.
        aupr_in: average precision with ID as the positive class (score negated).
        aupr_out: average precision with OOD as the positive class. Both AUPR depend on the sets' sizes.
        fpr95_id: share of OOD images accepted at the threshold that accepts 95 % of the ID images.
        fpr95_ood: share of ID images flagged at the threshold that flags 95 % of the OOD images.
        intervals: 95 % interval (low, high) of each of them, by name.
        n_in, n_out: sizes of the sets.
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95_id: float
    fpr95_ood: float
    intervals: Mapping[str, tuple[float, float]]
    n_in: int
    n_out: int


def separation(
    in_scores: ArrayLike, out_scores: ArrayLike, *, rng: np.random.Generator, resamples: int = 500
) -> Separation:
    """Compare anomaly scores of ID and OOD images.

    The interval of the AUROC is DeLong's; the others are percentile bootstrap intervals, ID and OOD resampled
    separately.

    Args:
        in_scores: (N,), higher is more anomalous.
        out_scores: (M,).
        rng: for the resampling.
        resamples: their number.

    Raises:
        UserError: a set is empty, or a score is not finite.
    """
    inside, outside = _scores("in-distribution", in_scores), _scores("out-of-distribution", out_scores)
    values = {
        "auroc": stats.auroc(inside, outside),
        "aupr_in": stats.average_precision(-outside, -inside),
        "aupr_out": stats.average_precision(inside, outside),
        "fpr95_id": stats.fpr_at_tpr(-outside, -inside, _TARGET),
        "fpr95_ood": stats.fpr_at_tpr(inside, outside, _TARGET),
    }
    intervals = {"auroc": stats.auroc_interval(inside, outside), **_resampled(inside, outside, rng, resamples)}
    return Separation(**values, intervals=intervals, n_in=len(inside), n_out=len(outside))


def _resampled(
    inside: NDArray[np.float64], outside: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of the four metrics that have no closed form.

    A resample only changes how often each score counts, so the scores are sorted once and every metric comes from
    running counts along them: about ten times faster than sorting each resample anew.
    """
    n, m = len(inside), len(outside)
    levels, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    in_place, out_place = places[:n], places[n:]
    draws = np.empty((resamples, 4))
    for draw in draws:
        ins = np.bincount(in_place[rng.integers(0, n, n)], minlength=len(levels))
        outs = np.bincount(out_place[rng.integers(0, m, m)], minlength=len(levels))
        rising = np.cumsum(ins), np.cumsum(outs)  # accepted up to each level
        falling = np.cumsum(ins[::-1]), np.cumsum(outs[::-1])  # flagged from each level on
        draw[0] = _precision(ins, *rising)
        draw[1] = _precision(outs[::-1], *falling[::-1])
        draw[2] = _rate(*rising)
        draw[3] = _rate(*falling[::-1])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    names = ("aupr_in", "aupr_out", "fpr95_id", "fpr95_ood")
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _precision(new: NDArray[np.int64], true: NDArray[np.int64], false: NDArray[np.int64]) -> float:
    """Average precision from the positives that each level adds and the positives and negatives up to it."""
    return float((new * (true / np.maximum(true + false, 1))).sum() / true[-1])


def _rate(true: NDArray[np.int64], false: NDArray[np.int64]) -> float:
    """The share of negatives taken at the first level that takes 95 % of the positives."""
    needed = int(np.ceil(_TARGET * true[-1] - 1e-9))
    return float(false[np.searchsorted(true, needed)] / false[-1])


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64).ravel()
    if not len(scores):
        raise UserError(f"separation: there are no {name} scores.")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"separation: {bad} of {len(scores)} {name} scores are not finite.")
    return scores
