"""Detectors compared on the same images: how well each separates every set, and which differences are not chance.

All detectors see the same images, so their figures err together, and a paired bootstrap tells a difference of one
point from chance where the intervals of the figures themselves overlap widely. A resample is a count per image, drawn
once for all detectors; sums of counts along the sorted scores give every metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast import stats
from holdfast.errors import UserError
from holdfast.ood.evaluation import Separation

__all__ = ["Comparison", "Standing", "compare_detectors"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

_LEVELS = 512  # into which scores are sorted for the resamples; as many as there are where these are fewer
_TARGET = 0.95


@dataclass(frozen=True)
class Standing:
    """A detector's place among others.

    Args:
        name: of the detector.
        auroc: the weighted mean over sets.
        behind: by how much that lies below the reference's.
        interval: 95 % interval of `behind`, paired over images.
    """

    name: str
    auroc: float
    behind: float
    interval: tuple[float, float]

    @property
    def tied(self) -> bool:
        """Whether the difference to the reference may be chance."""
        return self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Comparison:
    """What `compare_detectors` found.

    Args:
        separations: by detector, then by set.
        ranking: the best mean first.
    """

    separations: Mapping[str, Mapping[str, Separation]]
    ranking: tuple[Standing, ...]


def compare_detectors(
    known: Mapping[str, ArrayLike],
    unknown: Mapping[str, Mapping[str, ArrayLike]],
    *,
    weights: Mapping[str, float] | None = None,
    reference: str | None = None,
    rng: np.random.Generator,
    resamples: int = 500,
) -> Comparison:
    """Compare detectors by their scores of the same images.

    The intervals of AUROCs are DeLong's, the others percentiles of the bootstrap, for which scores are sorted into some
    hundred levels.

    Args:
        known: by detector, anomaly scores (N,) of in-distribution images, the same for all.
        unknown: by set, then by detector, anomaly scores (M,).
        weights: of the sets in the mean; equal by default.
        reference: whom the others are compared with; by default the one with the best mean.
        rng: for the resampling.
        resamples: their number.

    Raises:
        UserError: a set is empty, scores are not of the same images, or one is not finite.
    """
    inside = {name: _scores(name, scores) for name, scores in known.items()}
    outside = {s: {name: _scores(f"{name} on {s}", by[name]) for name in inside} for s, by in unknown.items()}
    for s, by in {"the known images": inside, **outside}.items():
        if len({len(scores) for scores in by.values()}) != 1:
            raise UserError(f"detectors must score the same images to be compared, but on {s} they score others.")
    total = sum((weights or {}).get(s, 1.0) for s in outside)
    share = {s: (weights or {}).get(s, 1.0) / total for s in outside}

    n = len(next(iter(inside.values())))
    in_counts = _draws(n, resamples, rng)
    out_counts = {s: _draws(len(next(iter(by.values()))), resamples, rng) for s, by in outside.items()}
    separations: dict[str, dict[str, Separation]] = {}
    means: dict[str, float] = {}
    resampled: dict[str, Floats] = {}
    for name, scores in inside.items():
        edges = _edges(np.concatenate([scores, *(by[name] for by in outside.values())]))
        ins = _by_level(scores, edges, in_counts)
        separations[name] = {}
        resampled[name] = np.zeros(resamples)
        for s, by in outside.items():
            drawn = _metrics(ins, _by_level(by[name], edges, out_counts[s]))
            resampled[name] += share[s] * drawn.pop("auroc")
            separations[name][s] = _separation(scores, by[name], drawn)
        means[name] = sum(share[s] * found.auroc for s, found in separations[name].items())
    order = sorted(means, key=lambda name: -means[name])
    best = reference or order[0]
    standings = []
    for name in order:
        low, high = np.quantile(resampled[best] - resampled[name], [0.025, 0.975])
        standings.append(Standing(name, means[name], means[best] - means[name], (float(low), float(high))))
    return Comparison(separations, tuple(standings))


def _separation(inside: Floats, outside: Floats, drawn: Mapping[str, Floats]) -> Separation:
    values = {
        "auroc": stats.auroc(inside, outside),
        "aupr_in": stats.average_precision(-outside, -inside),
        "aupr_out": stats.average_precision(inside, outside),
        "fpr95_id": stats.fpr_at_tpr(-outside, -inside, _TARGET),
        "fpr95_ood": stats.fpr_at_tpr(inside, outside, _TARGET),
    }
    intervals = {"auroc": stats.auroc_interval(inside, outside)}
    for name, values_drawn in drawn.items():
        low, high = np.quantile(values_drawn, [0.025, 0.975])
        # Levels are coarser than scores: the interval must hold the figure beside which it is printed.
        intervals[name] = (min(float(low), values[name]), max(float(high), values[name]))
    return Separation(**values, intervals=intervals, n_in=len(inside), n_out=len(outside))


def _draws(n: int, resamples: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """How often each of `n` images is drawn in each resample, (R, n); no count comes near 255."""
    counts = np.empty((resamples, n), dtype=np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return counts


def _edges(scores: Floats) -> Floats:
    """The lowest score of each level: all that occur, or quantiles where they are too many."""
    levels = np.unique(scores)
    if len(levels) <= _LEVELS:
        return levels
    return np.unique(np.quantile(scores, np.linspace(0, 1, _LEVELS, endpoint=False), method="lower"))


def _by_level(scores: Floats, edges: Floats, counts: NDArray[np.uint8]) -> Counts:
    """The images drawn on each level, (R, levels)."""
    order = np.argsort(scores, kind="stable")
    starts = np.searchsorted(scores[order], edges)
    padded = np.append(starts, len(scores))
    filled = np.flatnonzero(np.diff(padded))  # reduceat takes an empty slice for one element
    sums = np.zeros((len(counts), len(edges)), dtype=np.int32)
    sums[:, filled] = np.add.reduceat(counts[:, order], starts[filled], axis=1, dtype=np.int32)
    return sums


def _metrics(ins: Counts, outs: Counts) -> dict[str, Floats]:
    """The metrics of each resample, (R,), from its images on each level (R, levels)."""
    accepted, missed = (counts.cumsum(1, dtype=np.int32) for counts in (ins, outs))  # up to each level
    n, m = accepted[:, -1:], missed[:, -1:]
    flagged, alarms = m - missed + outs, n - accepted + ins  # from each level on
    return {
        "auroc": (outs * (accepted - ins / 2)).sum(1) / (n.astype(np.float64) * m)[:, 0],
        "aupr_in": (ins * (accepted / np.maximum(accepted + missed, 1))).sum(1) / n[:, 0],
        "aupr_out": (outs * (flagged / np.maximum(flagged + alarms, 1))).sum(1) / m[:, 0],
        "fpr95_id": _at_target(accepted, missed) / m[:, 0],
        "fpr95_ood": _at_target(flagged[:, ::-1], alarms[:, ::-1]) / n[:, 0],
    }


def _at_target(true: Counts, false: Counts) -> Counts:
    """The negatives taken at the first level that takes 95 % of the positives; both (R, levels), rising."""
    needed = np.ceil(_TARGET * true[:, -1:] - 1e-9)
    first = (true < needed).sum(1)
    taken: Counts = false[np.arange(len(false)), first]
    return taken


def _scores(name: str, values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64).ravel()
    if not len(scores):
        raise UserError(f"{name}: there are no scores to compare.")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise UserError(f"{name}: {bad} of {len(scores)} scores are not finite.")
    return scores
