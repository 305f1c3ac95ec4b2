"""DI-FGSM: before each gradient, the image is resized and padded at random, half of the time.

Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019, arXiv:1803.06978,
section 3.3. Enlarged by up to a tenth, padded, and brought back to its size; drawn for each image on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["DIFGSM"]


@dataclass(frozen=True, kw_only=True)
class DIFGSM(
    MomentumAttack,
    id="di-fgsm",
    title="Diverse inputs iterative FGSM",
    paper=Paper(
        title="Improving Transferability of Adversarial Examples with Input Diversity",
        arxiv="1803.06978",
        venue="CVPR",
        year=2019,
    ),
):
    """Diverse inputs iterative FGSM, with momentum (the paper's M-DI2-FGSM).

    What works on a resized image too owes less to the surrogate's own fit. One gradient per step. ``momentum=0`` gives
    the paper's DI2-FGSM. On images of a few pixels there is little to resize.
    """

    diversity: Annotated[float, Field(ge=0, le=1)] = 0.5
