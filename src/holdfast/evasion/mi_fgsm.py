"""MI-FGSM: step along the sign of a running sum of gradients, each scaled to mean size 1.

Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, arXiv:1710.06081, algorithm 1. It won both attack
tracks of the NIPS 2017 competition, with an ensemble of surrogates; see `holdfast.evasion.Ensemble`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from holdfast.evasion.momentum import MomentumAttack
from holdfast.methods import Paper

__all__ = ["MIFGSM"]


@dataclass(frozen=True, kw_only=True)
class MIFGSM(
    MomentumAttack,
    id="mi-fgsm",
    paper=Paper(
        title="Boosting Adversarial Attacks with Momentum",
        arxiv="1710.06081",
        venue="CVPR",
        year=2018,
    ),
):
    """Momentum iterative FGSM.

    The standard transfer attack: the memory keeps directions steady, which carries points through the surrogate's own
    quirks, and, as `l2-transferability` shows, makes the perturbation larger in l_2 at the same l_inf. One gradient
    per step. The parts of its relatives may be switched on as well, e.g. ``mi-fgsm(diversity=0.5, kernel=5)``.
    """

    momentum: Annotated[float, Field(ge=0)] = 1.0
