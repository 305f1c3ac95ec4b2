"""VMI-FGSM: correct each gradient by how the gradients around the last point differed from the one at it.

Wang & He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021, arXiv:2103.15571,
algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["VMIFGSM"]


@dataclass(frozen=True, kw_only=True)
class VMIFGSM(
    MomentumAttack,
    id="vmi-fgsm",
    paper=Paper(
        title="Enhancing the Transferability of Adversarial Attacks through Variance Tuning",
        arxiv="2103.15571",
        venue="CVPR",
        year=2021,
    ),
):
    """Variance-tuned momentum iterative FGSM.

    The strongest single part, and the dearest: about 20 gradients per step. ``lookahead="momentum"`` gives the paper's
    VNI-FGSM.
    """

    neighbours: Annotated[int, Field(ge=0)] = 20
