"""NI-SI-TI-DI: look-ahead, scaled copies of a resized image and a smoothed gradient together.

Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, arXiv:1908.06281,
section 4.4 (there SI-NI-TI-DIM). The image is resized first, then scaled; the sum of gradients is smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["NISITIDI"]


@dataclass(frozen=True, kw_only=True)
class NISITIDI(
    MomentumAttack,
    id="ni-si-ti-di",
    title="NI-SI-TI-DI-FGSM",
    paper=Paper(
        title="Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        arxiv="1908.06281",
        venue="ICLR",
        year=2020,
    ),
):
    """Nesterov momentum, scale invariance, translation invariance and diverse inputs together.

    One of the attacks against which `pubdef` is judged. Five gradients per step.
    """

    lookahead: Literal["none", "momentum", "gradient"] = "momentum"
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.5
    kernel: Annotated[int, Field(ge=1)] = 5
    scales: Annotated[int, Field(ge=1, le=32)] = 5
