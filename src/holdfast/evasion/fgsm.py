"""FGSM: one step of length eps along the sign of the gradient, from the image itself.

Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572. It is the first step
of `pgd` without a random start, and is run as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.losses import Aim, LossName
from holdfast.evasion.pgd import PGD, Ascent, check_eps
from holdfast.methods import Paper

__all__ = ["FGSM"]


@dataclass(frozen=True, kw_only=True)
class FGSM(
    BallAttack,
    id="fgsm",
    paper=Paper(title="Explaining and Harnessing Adversarial Examples", arxiv="1412.6572", venue="ICLR", year=2015),
):
    """Fast gradient sign method.

    Cheap and weak: a quick look, and the yardstick that iterative attacks must beat unless gradients are masked.

    Args:
        eps: radius of the ball and length of the step, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, or ``"l2"`` for a step along the gradient itself.
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def search(self, aim: Aim, seed: int) -> Ascent:
        """One step of PGD; its length is eps."""
        return Ascent(PGD(eps=self.eps, norm=self.norm, steps=1, random_start=False, loss=self.loss), aim, seed)
