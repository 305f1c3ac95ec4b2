"""An anomaly score becomes an alarm with a false-alarm rate that is promised, whatever the score and the data.

An input is compared with known images that neither the model nor the detector learnt from: its p-value is the share of
those, itself included, that score at least as high. If it is one of their kind, every rank is equally likely, so an
alarm at ``p <= alpha`` is false with probability at most alpha.

That holds on average over calibration sets; with the one at hand the rate may be higher. It is a beta-distributed
number, so a stricter rank keeps it below alpha for all but a share delta of calibration sets.

Vovk et al., "Algorithmic Learning in a Random World", 2005; Vovk, "Conditional Validity of Inductive Conformal
Predictors", ACML 2012, arXiv:1209.2673; Bates et al., "Testing for Outliers with Conformal p-values", Annals of
Statistics 2023, arXiv:2104.08279.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its modules load on first use
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["ConformalAlarm", "conformal_alarm", "smallest_alarm_rate"]


@dataclass(frozen=True, eq=False)
class ConformalAlarm:
    """Turns anomaly scores into p-values and alarms; `conformal_alarm` makes one.

    Args:
        scores: float64 (n,), of the calibration images, ascending.
        alpha: the false-alarm rate that is promised.
        delta: with which probability over calibration sets the promise may fail; ``None``: it holds on average.
        rank: an alarm is a score above the calibration score of this rank, counted from the highest.
    """

    scores: Float[Tensor, " n"]
    alpha: float
    delta: float | None
    rank: int

    def __call__(self, scores: Float[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Which of the anomaly scores raise an alarm.

        Raises:
            UserError: a score is NaN.
        """
        return _valid(scores) > self.threshold

    def p_values(self, scores: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The p-value of each anomaly score, float64, in [1 / (n + 1), 1]; low for anomalies.

        Raises:
            UserError: a score is NaN.
        """
        below = torch.searchsorted(self.scores, _valid(scores))
        return (len(self.scores) - below + 1).double() / (len(self.scores) + 1)

    @property
    def threshold(self) -> float:
        """The highest score that raises no alarm."""
        return float(self.scores[len(self.scores) - self.rank])

    @property
    def promise(self) -> str:
        """The guarantee in words."""
        n, alpha = len(self.scores), _percent(self.alpha)
        if self.delta is None:
            return f"Of images like the {n} it was calibrated on, on average at most {alpha} raise a false alarm."
        sure = _percent(1 - self.delta)
        return f"Of images like the {n} it was calibrated on, at most {alpha} raise a false alarm ({sure} certain)."


def conformal_alarm(scores: Float[Tensor, " n"], alpha: float = 0.05, *, delta: float | None = None) -> ConformalAlarm:
    """Calibrate an alarm by the anomaly scores of known images.

    Args:
        scores: (n,), of images that neither the model nor the detector learnt from.
        alpha: the false-alarm rate, in (0, 1): the chance that an image of the same kind raises an alarm is at most
            this; without ties it lies above ``alpha - 1 / (n + 1)``.
        delta: in (0, 1). Promise more: for all but this share of calibration sets, the rate of false alarms in the
            long run is at most `alpha`.

    Raises:
        UserError: a number is out of range, a score is NaN, or so few images allow no alarm at this rate.
    """
    for name, value in (("alpha", alpha), ("delta", 0.5 if delta is None else delta)):
        if not 0 < value < 1:
            raise UserError(f"conformal alarm: {name} must be in (0, 1), got {value!r}.")
    ordered = _valid(scores).sort().values
    n = len(ordered)
    if not n:
        raise UserError("conformal alarm: there are no calibration images.")
    rank = _rank(n, alpha, delta)
    if not rank:
        least = smallest_alarm_rate(n, delta)
        raise UserError(
            f"conformal alarm: {n} calibration images allow no alarm rate below {least:.4g}, got {alpha:g}; "
            f"this rate needs {_images_for(alpha, delta)}."
        )
    return ConformalAlarm(ordered, alpha, delta, rank)


def smallest_alarm_rate(n: int, delta: float | None = None) -> float:
    """The lowest false-alarm rate that `n` calibration images can promise: an alarm is then above all their scores."""
    return 1 / (n + 1) if delta is None else 1 - float(delta ** (1 / n))


def _rank(n: int, alpha: float, delta: float | None) -> int:
    """The lowest rank, counted from the highest score, that keeps the promise; 0 where none does."""
    slack = 1e-9  # (n + 1) alpha = 10 must not become 9.999... by rounding
    if delta is None:
        return min(n, math.floor((n + 1) * alpha + slack))
    # An alarm is a score above the k-th highest of n. The rate of such scores is Beta(k, n + 1 - k) distributed, and
    # P(Beta > alpha) = P(Binomial(n, alpha) < k): the largest k for which that stays within delta.
    below = scipy.special.bdtr(np.arange(n), n, alpha)
    return int((below <= delta * (1 + slack)).sum())


def _images_for(alpha: float, delta: float | None) -> int:
    exact = 1 / alpha - 1 if delta is None else math.log(delta) / math.log1p(-alpha)
    return math.ceil(exact - 1e-9)


def _valid(scores: Tensor) -> Tensor:
    scores = scores.detach().double().cpu()
    bad = int(scores.isnan().sum())
    if bad:
        # Comparisons with NaN are false: a bad score would silently raise no alarm.
        raise UserError(f"conformal alarm: {bad} of {len(scores)} scores are NaN.")
    return scores


def _percent(rate: float) -> str:
    return f"{100 * rate:.4g} %"
