"""Rates with their intervals, rankings, calibration errors and paired tests, on plain NumPy arrays.

Conventions: a *positive* is what a score should rank high; two-sided intervals hold with probability `level`; every
function is deterministic, those that resample take the generator. An empty sample or a NaN raises `UserError`, since a
number made of nothing would be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy  # its modules load on first use
from numpy.typing import ArrayLike, NDArray

from holdfast.errors import UserError

__all__ = [
    "Bins",
    "adaptive_ece",
    "aurc",
    "auroc",
    "auroc_interval",
    "average_precision",
    "bootstrap",
    "brier",
    "calibration_bins",
    "clopper_pearson",
    "ece",
    "fpr_at_tpr",
    "mcnemar",
    "mean_interval",
    "newcombe",
    "newcombe_paired",
    "nll",
    "risk_coverage",
    "student_interval",
    "tpr_at_fpr",
    "wilson",
]

Interval = tuple[float, float]
Floats = NDArray[np.float64]

_SLACK = 1e-9  # 0.95 * 20 must count as 19 whole samples, whatever the rounding of 0.95


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of the rate `k` / `n` (Wilson, 1927).

    The default for a rate: its coverage is close to `level` for every rate and sample size, and it stays in [0, 1].
    """
    _counts("wilson", k, n)
    z = _z(level)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exact only up to rounding.
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval of the rate `k` / `n` (Clopper and Pearson, 1934): coverage is never below `level`."""
    _counts("clopper_pearson", k, n)
    tail = (1 - level) / 2
    # P(X >= k) grows with the rate; P(X <= k) falls.
    low = 0.0 if k == 0 else _solve(lambda p: _binomial(np.arange(k, n + 1), n, p) - tail)
    high = 1.0 if k == n else _solve(lambda p: tail - _binomial(np.arange(k + 1), n, p))
    return low, high


def newcombe(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> Interval:
    """Interval of the difference `k1/n1 - k2/n2` of two independent rates (Newcombe, 1998a, method 10)."""
    p1, p2 = k1 / max(n1, 1), k2 / max(n2, 1)
    (l1, u1), (l2, u2) = wilson(k1, n1, level), wilson(k2, n2, level)
    d = p1 - p2
    return d - math.hypot(p1 - l1, u2 - p2), d + math.hypot(u1 - p1, p2 - l2)


def newcombe_paired(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of the difference rate(a) - rate(b), where a[i] and b[i] belong to the same sample.

    Newcombe (1998b), method 10: Wilson's limits of both rates, joined with their correlation.

    Args:
        a, b: booleans, of equal length.
        level: of confidence.
    """
    a, b = _pairs("newcombe_paired", a, b)
    n = len(a)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    neither = n - both - only_a - only_b
    p1, p2 = (both + only_a) / n, (both + only_b) / n
    (l1, u1), (l2, u2) = wilson(both + only_a, n, level), wilson(both + only_b, n, level)
    spread = math.prod((both + only_a, only_b + neither, both + only_b, only_a + neither))
    covariance = both * neither - only_a * only_b
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance  # Newcombe's continuity correction
    phi = corrected / math.sqrt(spread) if spread else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return (p1 - p2) - math.sqrt(max(down, 0)), (p1 - p2) + math.sqrt(max(up, 0))


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value that two classifiers, right (True) or wrong on the same samples, err equally often."""
    a, b = _pairs("mcnemar", a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, 2 * _binomial(np.arange(min(only_a, only_b) + 1), only_a + only_b, 0.5))


def bootstrap(
    statistic: Callable[..., float],
    *samples: NDArray[Any],
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of ``statistic(*samples)``; each sample is resampled along its first axis.

    Values that belong together (a prediction and its label) go into one array, as its rows.
    """
    for sample in samples:
        if not len(sample):
            raise UserError("bootstrap: a sample is empty.")
    values = np.array([statistic(*(s[rng.integers(0, len(s), len(s))] for s in samples)) for _ in range(resamples)])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: ArrayLike, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of a mean."""
    values = _scores("mean_interval", values)
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[rng.integers(0, len(values), len(values))].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of a few independent values, such as the results of several seeds."""
    values = _scores("student_interval", values)
    if len(values) < 2:
        raise UserError("student_interval: one value says nothing about its spread; give two or more.")
    quantile = float(scipy.stats.t.ppf((1 + level) / 2, len(values) - 1))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


# --- Rankings ---------------------------------------------------------------------------------------------------------


def auroc(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The chance that a positive scores above a negative; a tie counts one half (the Mann-Whitney statistic)."""
    negatives, positives = _scores("auroc", negatives), _scores("auroc", positives)
    return float(_placements(positives, np.sort(negatives)).mean())


def auroc_interval(negatives: ArrayLike, positives: ArrayLike, level: float = 0.95) -> Interval:
    """DeLong's interval of the AUROC (DeLong et al., 1988), by ranks in O(n log n) (Sun and Xu, 2014).

    On the logit scale, which keeps it in [0, 1]. Where the variance vanishes (classes perfectly apart) DeLong knows
    nothing, and the exact limit for as many successes as the smaller sample has members takes its place.
    """
    negatives, positives = _scores("auroc_interval", negatives), _scores("auroc_interval", positives)
    n, m = len(negatives), len(positives)
    of_positive = _placements(positives, np.sort(negatives))
    of_negative = 1 - _placements(negatives, np.sort(positives))
    area = float(of_positive.mean())
    variance = sum(v.var(ddof=1) / len(v) for v in (of_positive, of_negative) if len(v) > 1)
    if area * (1 - area) == 0 or variance == 0 or min(n, m) < 2:
        low, high = clopper_pearson(round(area * min(n, m)), min(n, m), level)
        return min(low, area), max(high, area)
    logit, half = math.log(area / (1 - area)), _z(level) * math.sqrt(variance) / (area * (1 - area))
    return 1 / (1 + math.exp(min(half - logit, 700))), 1 / (1 + math.exp(-min(logit + half, 700)))


def fpr_at_tpr(negatives: ArrayLike, positives: ArrayLike, tpr: float = 0.95) -> float:
    """The share of negatives at or above the highest threshold that still catches the share `tpr` of the positives."""
    negatives, positives = _scores("fpr_at_tpr", negatives), _scores("fpr_at_tpr", positives)
    needed = max(1, math.ceil(tpr * len(positives) - _SLACK))
    return float((negatives >= np.sort(positives)[len(positives) - needed]).mean())


def tpr_at_fpr(negatives: ArrayLike, positives: ArrayLike, fpr: float = 0.01) -> float:
    """The share of positives above the lowest threshold that lets at most the share `fpr` of the negatives pass."""
    negatives, positives = _scores("tpr_at_fpr", negatives), _scores("tpr_at_fpr", positives)
    allowed = math.floor(fpr * len(negatives) + _SLACK)
    if allowed >= len(negatives):
        return 1.0
    return float((positives > np.sort(negatives)[len(negatives) - 1 - allowed]).mean())


def average_precision(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The area under precision over recall, as the sum of steps (AUPR); equal scores form one step."""
    negatives, positives = np.sort(_scores("aupr", negatives)), np.sort(_scores("aupr", positives))
    levels = np.unique(positives)[::-1]
    true = len(positives) - np.searchsorted(positives, levels)
    false = len(negatives) - np.searchsorted(negatives, levels)
    steps = np.diff(true, prepend=0) / len(positives)
    return float((steps * true / (true + false)).sum())


# --- Confidence -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bins:
    """A reliability diagram's bins, those that hold samples: counts, mean confidence, accuracy."""

    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """The expected calibration error: mean |accuracy - confidence|, weighted by counts."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def calibration_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, equal_mass: bool = True) -> Bins:
    """Sort predictions into bins of equal mass (equal confidences stay together), or of equal width in [0, 1].

    Args:
        confidence: of the predicted class, (N,), in [0, 1].
        correct: whether the prediction was right, (N,).
        bins: their number.
        equal_mass: as many samples in each; otherwise equal width (Guo et al., 2017).
    """
    confidence, correct = _scores("ece", confidence), np.asarray(correct, dtype=np.float64)
    if len(confidence) != len(correct):
        raise UserError(f"ece: {len(confidence)} confidences, but {len(correct)} outcomes.")
    if equal_mass:
        starts = [len(confidence) * b // bins for b in range(1, bins)]
        edges = np.sort(confidence)[starts]
        which = np.searchsorted(edges, confidence, side="right")
    else:
        which = np.clip(np.ceil(confidence * bins - _SLACK).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    used = count > 0
    sums = [np.bincount(which, weights=w, minlength=bins)[used] for w in (confidence, correct)]
    return Bins(count[used], sums[0] / count[used], sums[1] / count[used])


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = True) -> float:
    """Expected calibration error of the predicted class, in [0, 1]; see `calibration_bins`."""
    return calibration_bins(confidence, correct, bins, equal_mass=equal_mass).ece


def adaptive_ece(probabilities: ArrayLike, y: ArrayLike, bins: int = 15) -> float:
    """Class-wise calibration error with equal-mass bins, the mean over classes (ACE; Nixon et al., 2019).

    Args:
        probabilities: (N, K).
        y: labels (N,).
        bins: per class.
    """
    probabilities, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y)
    return float(np.mean([ece(probabilities[:, k], y == k, bins) for k in range(probabilities.shape[1])]))


def brier(probabilities: ArrayLike, y: ArrayLike) -> Floats:
    """Brier's score per sample, (N,): the squared distance of the probabilities (N, K) from the label, in [0, 2]."""
    probabilities, y = np.asarray(probabilities, dtype=np.float64), np.asarray(y)
    # |p - e_y|^2 = |p|^2 - 2 p_y + 1, summed in this order so that a sure, right prediction scores exactly 0.
    own = probabilities[np.arange(len(y)), y]
    scores: Floats = (probabilities**2).sum(1) - own**2 + (1 - own) ** 2
    return np.maximum(scores, 0)


def nll(logits: ArrayLike, y: ArrayLike) -> Floats:
    """Negative log likelihood per sample, (N,), in nats, from logits (N, K)."""
    logits, y = np.asarray(logits, dtype=np.float64), np.asarray(y)
    shifted = logits - logits.max(1, keepdims=True)
    losses: Floats = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return losses


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Coverage and error rate when only the most confident are answered, for 1..N answers; ties share their risk.

    Returns:
        coverage (N,), rising to 1, and the error rate among the answered (N,), expected over the order of ties.
    """
    confidence = _scores("risk_coverage", confidence)
    wrong = ~np.asarray(correct, dtype=bool)
    levels, which, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(which, weights=wrong, minlength=len(levels)) / count
    answered = np.arange(1, len(confidence) + 1)
    return answered / len(confidence), np.cumsum(np.repeat(mean, count)) / answered


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, 2017): the mean risk over coverages 1/N..1."""
    return float(risk_coverage(confidence, correct)[1].mean())


# --- shared -----------------------------------------------------------------------------------------------------------


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"stats: level must be in (0, 1), got {level!r}.")
    return NormalDist().inv_cdf((1 + level) / 2)


def _counts(name: str, k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise UserError(f"{name}: counts must satisfy 0 <= k <= n and n >= 1, got k={k} of n={n}.")


def _scores(name: str, values: ArrayLike) -> Floats:
    values = np.asarray(values, dtype=np.float64).ravel()
    if not len(values):
        raise UserError(f"{name}: a sample is empty.")
    if np.isnan(values).any():
        raise UserError(f"{name}: {int(np.isnan(values).sum())} of {len(values)} values are NaN.")
    return values


def _pairs(name: str, a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    a, b = np.asarray(a, dtype=bool).ravel(), np.asarray(b, dtype=bool).ravel()
    if len(a) != len(b) or not len(a):
        raise UserError(f"{name}: two samples of equal length are needed, got {len(a)} and {len(b)}.")
    return a, b


def _placements(values: Floats, reference: Floats) -> Floats:
    """For each value, the share of the sorted `reference` below it, ties counted one half."""
    below, not_above = (np.searchsorted(reference, values, side=side) for side in ("left", "right"))
    placements: Floats = (below + not_above) / (2 * len(reference))
    return placements


def _binomial(k: NDArray[np.int64], n: int, p: float) -> float:
    """The chance of any of the counts `k` among `n` draws of rate `p`, summed in logarithms."""
    if p <= 0 or p >= 1:
        return float((k == (0 if p <= 0 else n)).any())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    terms = log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return float(np.exp(terms).sum())


def _solve(rising: Callable[[float], float]) -> float:
    """The root in [0, 1] of a rising function, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return middle
