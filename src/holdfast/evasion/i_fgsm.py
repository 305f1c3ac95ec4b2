"""I-FGSM: many small steps along the sign of the gradient, from the image itself; also called BIM.

Kurakin et al., "Adversarial Examples in the Physical World", ICLR Workshop 2017, arXiv:1607.02533, section 2.2. It is
the loop of the transfer attacks with every part switched off, and what they are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["IFGSM"]


@dataclass(frozen=True, kw_only=True)
class IFGSM(
    MomentumAttack,
    id="i-fgsm",
    paper=Paper(
        title="Adversarial Examples in the Physical World",
        arxiv="1607.02533",
        venue="ICLR Workshop",
        year=2017,
    ),
):
    """Iterative FGSM.

    The baseline of transfer attacks. Its steps undo each other where the gradient changes sign, so that few pixels end
    at the bound: a smaller perturbation than the ball allows, fitted to the surrogate. To measure a model's own
    robustness use `pgd`, which stops where it succeeds. With ``random_start=true`` it is PGD taken to its last step,
    the attack from which `pubdef` learns.
    """

    momentum: Annotated[float, Field(ge=0)] = 0.0
