"""How well membership scores tell the training images from others: AUC, balanced accuracy, TPR at a low FPR.

The true-positive rate at a low false-positive rate is what counts: an attack that is sure of a few people harms them,
however close to chance it is on average (Carlini et al., "Membership Inference Attacks From First Principles", S&P
2022, arXiv:2112.03570). Members and non-members must have the same mix of classes, or the scores tell classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast import stats
from holdfast.errors import UserError

__all__ = ["Leakage", "leakage", "tpr_at"]


@dataclass(frozen=True)
class Leakage:
    """What a membership attack achieves.

    Args:
        auc: chance that a member scores above a non-member; 0.5 is chance.
        balanced_accuracy: mean of the true-positive and true-negative rates at a threshold that was chosen on other
            images than those it is judged on; 0.5 is chance.
        tpr: true-positive rate by false-positive rate; ``None`` where there are too few non-members to resolve it.
        auc_interval, balanced_accuracy_interval: 95 % intervals (low, high).
        tpr_intervals: 95 % intervals, by false-positive rate, where there is a value.
        n_members, n_nonmembers: sizes of the samples.
    """

    auc: float
    balanced_accuracy: float
    tpr: Mapping[float, float | None]
    auc_interval: tuple[float, float]
    balanced_accuracy_interval: tuple[float, float]
    tpr_intervals: Mapping[float, tuple[float, float]]
    n_members: int
    n_nonmembers: int


def leakage(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    rng: np.random.Generator,
    fprs: Sequence[float] = (0.01, 0.001),
    resamples: int = 10_000,
) -> Leakage:
    """Judge membership scores.

    The interval of the AUC is DeLong's, that of the balanced accuracy is normal, and those of the true-positive rates
    are percentile bootstrap intervals.

    Args:
        members: scores (N,) of images that were trained on; higher says member.
        nonmembers: scores (M,) of images of the same kind that were not.
        rng: for splitting and resampling.
        fprs: false-positive rates to give the true-positive rate at.
        resamples: for the bootstrap.

    Raises:
        UserError: a sample has fewer than two scores, or a score is not finite.
    """
    inside, outside = _scores("members", members), _scores("non-members", nonmembers)
    accuracy, accuracy_interval = _balanced_accuracy(inside, outside, rng)
    tpr: dict[float, float | None] = {}
    intervals: dict[float, tuple[float, float]] = {}
    for fpr in fprs:
        tpr[fpr] = None
        if _resolves(len(outside), fpr):
            tpr[fpr] = tpr_at(inside, outside, fpr)
            intervals[fpr] = _tpr_interval(inside, outside, fpr, rng, resamples)
    return Leakage(
        auc=stats.auroc(outside, inside),
        balanced_accuracy=accuracy,
        tpr=tpr,
        auc_interval=stats.auroc_interval(outside, inside),
        balanced_accuracy_interval=accuracy_interval,
        tpr_intervals=intervals,
        n_members=len(inside),
        n_nonmembers=len(outside),
    )


def tpr_at(members: ArrayLike, nonmembers: ArrayLike, fpr: float) -> float:
    """The share of members recognised when at most the share `fpr` of non-members is mistaken for members.

    Raises:
        UserError: there are fewer than ``1 / fpr`` non-members, so that not even one may be mistaken.
    """
    inside, outside = _scores("members", members), _scores("non-members", nonmembers)
    if not 0 < fpr < 1:
        raise UserError(f"membership inference: fpr must be in (0, 1), got {fpr!r}.")
    if not _resolves(len(outside), fpr):
        raise UserError(
            f"membership inference: a false-positive rate of {fpr:g} needs at least {math.ceil(1 / fpr - 1e-9)} "
            f"non-members, got {len(outside)}."
        )
    return stats.tpr_at_fpr(outside, inside, fpr)


def _resolves(count: int, fpr: float) -> bool:
    return count * fpr >= 1 - 1e-9


def _balanced_accuracy(
    inside: NDArray[np.float64], outside: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """Two-fold: the best threshold of one half judges the other. The best of one sample, judged on it, flatters."""
    inside, outside = rng.permutation(inside), rng.permutation(outside)
    hits = passes = 0
    for fold in (0, 1):
        threshold = _best_threshold(inside[1 - fold :: 2], outside[1 - fold :: 2])
        hits += int((inside[fold::2] >= threshold).sum())
        passes += int((outside[fold::2] < threshold).sum())
    tpr, tnr = hits / len(inside), passes / len(outside)
    value = (tpr + tnr) / 2
    # Wilson's interval of each rate gives a width that does not vanish when a rate is 0 or 1.
    half = math.hypot(
        *((high - low) / 2 for low, high in (stats.wilson(hits, len(inside)), stats.wilson(passes, len(outside))))
    )
    return value, (max(0.0, value - half / 2), min(1.0, value + half / 2))


def _best_threshold(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    levels = np.unique(np.concatenate([inside, outside]))
    tpr = 1 - np.searchsorted(np.sort(inside), levels) / len(inside)
    tnr = np.searchsorted(np.sort(outside), levels) / len(outside)
    return float(levels[np.argmax(tpr + tnr)])


def _tpr_interval(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    fpr: float,
    rng: np.random.Generator,
    resamples: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `tpr_at`, both samples resampled, without doing so.

    The threshold of a resample is an order statistic of uniform draws from the sorted non-members, hence one Beta draw;
    the members above it are then binomial.
    """
    n, allowed = len(outside), math.floor(fpr * len(outside) + 1e-9)
    places = (n * rng.beta(n - allowed, allowed + 1, resamples)).astype(np.int64)
    thresholds = np.sort(outside)[np.minimum(places, n - 1)]
    above = 1 - np.searchsorted(np.sort(inside), thresholds, side="right") / len(inside)
    low, high = np.quantile(rng.binomial(len(inside), above) / len(inside), [0.025, 0.975])
    return float(low), float(high)


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64).ravel()
    if len(scores) < 2:
        raise UserError(f"membership inference: at least two {name} are needed, got {len(scores)}.")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"membership inference: {bad} of {len(scores)} scores of {name} are not finite.")
    return scores
