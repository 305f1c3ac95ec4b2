"""What is asked of a detector and a classifier on long-tailed data: accuracy by frequency, and with images rejected.

Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019, arXiv:1904.05160, and Wang et al., ICML
2022, arXiv:2207.01160, section 4.1.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Shots", "accuracy_when_rejecting", "classes_by_frequency"]

Shots = Literal["many", "medium", "few"]


def classes_by_frequency(counts: Int64[Tensor, " k"]) -> dict[Shots, Bool[Tensor, " k"]]:
    """Three groups of classes, thirds but for ties: more frequent than the class a third down the list, or rarer.

    Args:
        counts: training images of each class, in any order.

    Returns:
        For each group, which classes belong to it.
    """
    down = counts.sort(descending=True).values
    often, seldom = down[int(0.34 * len(down))], down[int(0.67 * len(down))]
    many, few = counts > often, counts < seldom
    return {"many": many, "medium": ~many & ~few, "few": few}


def accuracy_when_rejecting(right: Bool[Tensor, " n"], scores: Float[Tensor, " n"], share: float) -> float:
    """The accuracy on in-distribution images when a share of them, the most anomalous, is rejected (ACC@FPR).

    Args:
        right: which images are classified rightly.
        scores: of their anomaly.
        share: in [0, 1); of equal scores those that come first stay.

    Raises:
        UserError: the share is not in [0, 1), or there are no images.
    """
    if not 0 <= share < 1 or not len(right):
        raise UserError(f"accuracy_when_rejecting: a share in [0, 1) of some images is needed, got {share:g}.")
    kept = scores.argsort(stable=True)[: max(1, round((1 - share) * len(right)))]
    return float(right[kept].double().mean())
