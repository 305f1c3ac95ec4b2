"""What a calibration error and a confidence are worth: the error of a perfectly calibrated model, and selective risk.

The errors themselves (ECE, Brier, NLL, reliability bins, risk-coverage) are in `holdfast.stats`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from holdfast import stats
from holdfast.errors import UserError

__all__ = ["Floor", "ece_floor", "selective_risk"]


class Floor(NamedTuple):
    """The calibration error that chance alone gives a perfectly calibrated model.

    Args:
        mean: on average.
        high: exceeded by one such model in twenty.
    """

    mean: float
    high: float


def ece_floor(
    confidence: ArrayLike, bins: int = 15, *, equal_mass: bool = True, rng: np.random.Generator, draws: int = 200
) -> Floor:
    """The ECE that remains, from sampling alone, if every confidence were the true chance of being right.

    Binned calibration errors are biased upwards: |accuracy - confidence| of a finite bin is never 0 on average. An ECE
    below `high` is no evidence of miscalibration. Outcomes are drawn from the confidences and measured like the real
    ones (the consistency resampling of Broecker and Smith, 2007).

    Args:
        confidence: of the predicted class, (N,), in [0, 1].
        bins, equal_mass: as in `stats.ece`.
        rng: for the outcomes.
        draws: number of imagined data sets.
    """
    confidence = np.asarray(confidence, dtype=np.float64).ravel()
    # Equal-mass bins are found by sorting, which is quickest on sorted values.
    confidence = np.sort(confidence)
    outcomes = (rng.random(len(confidence)) < confidence for _ in range(draws))
    errors = [stats.ece(confidence, outcome, bins, equal_mass) for outcome in outcomes]
    return Floor(float(np.mean(errors)), float(np.quantile(errors, 0.95)))


def selective_risk(confidence: ArrayLike, correct: ArrayLike, coverage: float = 0.8) -> float:
    """The error rate among the share `coverage` of predictions with the highest confidence; ties share their risk.

    Args:
        confidence: (N,), any increasing function of it will do.
        correct: (N,), whether the prediction was right.
        coverage: in (0, 1]; rounded up to whole predictions.
    """
    if not 0 < coverage <= 1:
        raise UserError(f"selective_risk: coverage must be in (0, 1], got {coverage!r}.")
    _, risk = stats.risk_coverage(confidence, correct)
    return float(risk[max(1, math.ceil(coverage * len(risk) - 1e-9)) - 1])
