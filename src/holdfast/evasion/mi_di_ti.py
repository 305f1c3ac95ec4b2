"""MI-DI-TI: momentum, random resizing and a smoothed gradient together.

Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR 2019,
arXiv:1904.02884, section 4 (there TI-DIM): the best of that paper's combinations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["MIDITI"]


@dataclass(frozen=True, kw_only=True)
class MIDITI(
    MomentumAttack,
    id="mi-di-ti",
    title="MI-DI-TI-FGSM",
    paper=Paper(
        title="Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
        arxiv="1904.02884",
        venue="CVPR",
        year=2019,
    ),
):
    """Momentum, diverse inputs and translation invariance together.

    The usual strong transfer attack at one gradient per step: `mi-fgsm` with the parts of `di-fgsm` and `ti-fgsm`.
    """

    diversity: Annotated[float, Field(ge=0, le=1)] = 0.5
    kernel: Annotated[int, Field(ge=1)] = 5
