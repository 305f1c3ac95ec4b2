"""Split conformal prediction: sets of classes that hold the right one as often as promised, whatever the model.

Least ambiguous sets (Sadinle et al., "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019,
arXiv:1609.00451): a class is in the set when its probability is high enough, the threshold being a quantile of the true
classes' probabilities on held-out data. Of all sets with that coverage these are the smallest on average, and unlike
adaptive sets they need no random number. The promise is marginal: it holds over all images, not for each class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["ConformalSets", "Coverage", "conformal", "coverage"]


@dataclass(frozen=True)
class ConformalSets:
    """Turns logits into sets of classes.

    Args:
        alpha: the promised miss rate.
        threshold: the largest negative log probability of a class that is let in, in nats; infinite when the
            calibration set is too small for `alpha`, so that every class is.
        n: size of the calibration set.
    """

    alpha: float
    threshold: float
    n: int

    def __call__(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, "n k"]:
        """Which classes are in each image's set, (N, K). A set may be empty: no class is likely enough."""
        return _surprise(logits) <= self.threshold


@dataclass(frozen=True)
class Coverage:
    """How conformal sets fare on labelled images.

    Args:
        covered: bool (N,), whether the set holds the label.
        sizes: int64 (N,), number of classes in the set.
        by_class: float64 (K,), coverage of each class's images; NaN for a class without images.
        counts: int64 (K,), number of images of each class.
    """

    covered: Bool[Tensor, " n"]
    sizes: Int64[Tensor, " n"]
    by_class: Float[Tensor, " k"]
    counts: Int64[Tensor, " k"]

    @property
    def rate(self) -> float:
        """The share of images whose set holds their label."""
        return float(self.covered.double().mean())

    @property
    def mean_size(self) -> float:
        """The mean number of classes in a set."""
        return float(self.sizes.double().mean())


def conformal(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], alpha: float = 0.1) -> ConformalSets:
    """Calibrate sets that miss the right class with probability at most `alpha`.

    The threshold is the ``ceil((n + 1)(1 - alpha))``-th smallest surprise of the true classes; for exchangeable images
    and no ties the coverage then lies between ``1 - alpha`` and ``1 - alpha + 1 / (n + 1)``.

    Args:
        logits: (N, K), of images that the model did not learn from.
        y: labels (N,).
        alpha: in (0, 1).

    Raises:
        UserError: there are no images, or `alpha` is out of range.
    """
    if not 0 < alpha < 1:
        raise UserError(f"conformal: alpha must be in (0, 1), got {alpha!r}.")
    if not len(y) or len(y) != len(logits):
        raise UserError(f"conformal: logits and labels of the same images are needed, got {len(logits)} and {len(y)}.")
    surprises = _surprise(logits).gather(1, y[:, None]).squeeze(1)
    if not torch.isfinite(surprises).all():
        raise UserError("conformal: the logits hold NaN or infinite values.")
    n = len(surprises)
    # n + 1 - floor is the ceiling above; the slack keeps (n + 1) alpha = 10 from becoming 9.999... by rounding.
    rank = n + 1 - math.floor((n + 1) * alpha + 1e-9)
    threshold = float(surprises.kthvalue(rank).values) if rank <= n else math.inf
    return ConformalSets(alpha, threshold, n)


def coverage(sets: Bool[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Coverage:
    """Whether each set (N, K) holds its label (N,), overall and by class, and how large the sets are."""
    covered = sets.gather(1, y[:, None]).squeeze(1)
    counts = torch.bincount(y, minlength=sets.shape[1])
    hits = torch.bincount(y[covered], minlength=sets.shape[1])
    return Coverage(covered, sets.sum(1), hits.double() / counts, counts)


def _surprise(logits: Tensor) -> Tensor:
    # In float64 logarithms: confident classes keep their order where probabilities would all round to 1.
    return -logits.double().log_softmax(1)
