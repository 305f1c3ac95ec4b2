"""TI-FGSM: the gradient is smoothed by a Gaussian, as if the image had been attacked at many places at once.

Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR 2019,
arXiv:1904.02884, eq. 7. The kernel is 5 pixels wide here, for images of 32; the paper's is 15, for images of 299.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["TIFGSM"]


@dataclass(frozen=True, kw_only=True)
class TIFGSM(
    MomentumAttack,
    id="ti-fgsm",
    title="Translation-invariant iterative FGSM",
    paper=Paper(
        title="Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
        arxiv="1904.02884",
        venue="CVPR",
        year=2019,
    ),
):
    """Translation-invariant iterative FGSM, with momentum (the paper's TI-MI-FGSM).

    Meant for victims that were trained to resist: they look at coarser patterns than ordinary surrogates, and smoothed
    perturbations are coarse. Against ordinary victims it may lose. One gradient per step; ``momentum=0`` gives the
    paper's TI-FGSM.
    """

    kernel: Annotated[int, Field(ge=1)] = 5
