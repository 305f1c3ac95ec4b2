"""NI-FGSM: MI-FGSM with the gradient taken where the accumulated direction is about to lead.

Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, arXiv:1908.06281,
algorithm 1. The point looked at is not clipped to the ball, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["NIFGSM"]


@dataclass(frozen=True, kw_only=True)
class NIFGSM(
    MomentumAttack,
    id="ni-fgsm",
    paper=Paper(
        title="Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        arxiv="1908.06281",
        venue="ICLR",
        year=2020,
    ),
):
    """Nesterov iterative FGSM.

    Costs what `mi-fgsm` costs, and corrects its overshooting. ``lookahead="gradient"`` looks along the latest gradient
    instead of the whole memory (PI-FGSM).
    """

    lookahead: Literal["none", "momentum", "gradient"] = "momentum"
