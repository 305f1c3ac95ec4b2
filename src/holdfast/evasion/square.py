"""Square: random search over square patches that sit on the ball's surface; no gradients, only the model's scores.

Start with vertical stripes of plus or minus eps. Then propose, again and again, to set one square at a random place to
plus or minus eps in each channel, and keep what brings the prediction nearer to an error. Squares shrink on a schedule.
For l_2 and l_1 squares are bumps that take their share of the radius from elsewhere; see `holdfast.evasion.patches`.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020,
arXiv:1912.00049, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import Norm
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, loss_for
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.patches import Bumps, Proposals, Squares
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper

__all__ = ["RandomSearch", "Square"]

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the paper's, for a budget of 10,000 queries


@dataclass(frozen=True, kw_only=True)
class Square(
    BallAttack,
    id="square",
    title="Square attack",
    paper=Paper(
        title="Square Attack: a query-efficient black-box adversarial attack via random search",
        arxiv="1912.00049",
        venue="ECCV",
        year=2020,
    ),
):
    """The Square attack in l_inf, l_2 and l_1.

    A practical threat, since a deployed model's scores suffice, and the standard detector of masked gradients: it
    should never find much that gradient attacks miss.

    With the run's ``precision="bf16"`` most proposals, which do not help, are turned down by a pass in bf16; what looks
    better is passed again in float32, and only that decides. Of the improvements about a tenth is missed, the smallest
    (robust ResNet-20). A proposal counts as one query either way.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        queries: budget per sample, the one for the start included.
        p_init: share of the pixels in the first squares. 0.8 is AutoAttack's; the paper takes 0.05 for undefended and
            0.3 for robust models, and 0.1 for l_2.
        rescale: stretch or shrink the schedule of square sizes to the budget, as the paper does; AutoAttack does not.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Norm = "linf"
    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def search(self, aim: Aim, seed: int) -> RandomSearch:
        """The random search with these hyperparameters."""
        return RandomSearch(self, aim, seed)

    def side(self, iteration: int, height: int, width: int) -> int:
        """The side of the squares proposed in an iteration (from 0), in pixels."""
        if self.rescale:
            iteration = iteration * 10_000 // self.queries
        share = self.p_init / 2 ** sum(iteration > after for after in _HALVED_AFTER)
        side, most = round(math.sqrt(share * height * width)), min(height, width)
        if self.norm == "linf":
            return max(1, min(side, most - 1))
        return min(max(side, 3) | 1, most)  # odd, with room for a bump and a hollow


class RandomSearch(Search):
    """The loop of Square; `attack` gives the hyperparameters."""

    def __init__(self, attack: Square, aim: Aim, seed: int):
        # An untargeted attack compares margins, a targeted one the target's probability (section 3.1 of the paper).
        loss = loss_for(aim, "ce" if aim == "given" else "margin")
        super().__init__(steps=attack.queries, aim=aim, loss=loss, gradients=0)
        self.attack, self.seed = attack, seed
        self.propose: Proposals  # once the size of the images is known

    def begin(self, fresh: State) -> None:
        """``best`` stays the image until the start has been queried."""
        x0, a = fresh["x0"], self.attack
        if not hasattr(self, "propose"):
            sides = torch.tensor([a.side(i, *x0.shape[2:]) for i in range(self.steps)], device=x0.device)
            self.propose = (Squares if a.norm == "linf" else Bumps)(a.eps, a.norm, self.seed, sides)
        self.propose.begin(fresh)

    def step(self, oracle: Oracle, state: State) -> None:
        """Propose, query, and keep what is nearer to the aim."""
        self.consider(oracle, state, self.propose(state))
