"""SI-FGSM: average the gradient over copies of the image divided by 1, 2, 4, 8 and 16.

Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, arXiv:1908.06281,
eq. 8. Networks nearly keep their decision on a darker image, so the copies act as further surrogates for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["SIFGSM"]


@dataclass(frozen=True, kw_only=True)
class SIFGSM(
    MomentumAttack,
    id="si-fgsm",
    title="Scale-invariant iterative FGSM",
    paper=Paper(
        title="Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        arxiv="1908.06281",
        venue="ICLR",
        year=2020,
    ),
):
    """Scale-invariant iterative FGSM, with momentum.

    Five gradients per step. ``lookahead="momentum"`` gives the paper's SI-NI-FGSM.
    """

    scales: Annotated[int, Field(ge=1, le=32)] = 5
