"""Square: random search over square patches that sit on the ball's surface; no gradients, only the model's scores.

Start with vertical stripes of plus or minus eps. Then propose, again and again, to set one square at a random place to
plus or minus eps in each channel, and keep what brings the prediction nearer to an error. Squares shrink on a schedule.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020,
arXiv:1912.00049, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, loss_for, reached
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["Square", "squares"]

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the paper's, for a budget of 10,000 queries
_ITERATION = 0x2545F4914F6CDD1D  # odd: keeps the random numbers of an item's iterations apart


@dataclass(frozen=True, kw_only=True)
class Square(
    BallAttack,
    id="square",
    paper=Paper(
        title="Square Attack: a query-efficient black-box adversarial attack via random search",
        arxiv="1912.00049",
        venue="ECCV",
        year=2020,
    ),
):
    """Square attack (l_inf).

    A practical threat, since a deployed model's scores suffice, and the standard detector of masked gradients: it
    should never find much that gradient attacks miss.

    Args:
        eps: radius of the l_inf ball, in pixel units of [0, 1].
        queries: budget per sample, the one for the stripes included.
        p_init: share of the pixels in the first squares. 0.8 is AutoAttack's; the paper takes 0.05 for undefended and
            0.3 for robust models.
        rescale: stretch or shrink the schedule of square sizes to the budget, as the paper does; AutoAttack does not.
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 8 / 255
    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    rescale: bool = False

    norm = "linf"

    def search(self, aim: Aim, seed: int) -> RandomSearch:
        """The random search with these hyperparameters."""
        return RandomSearch(self, aim, seed)

    def side(self, iteration: int, height: int, width: int) -> int:
        """The side of the squares proposed in an iteration (from 0), in pixels."""
        if self.rescale:
            iteration = iteration * 10_000 // self.queries
        share = self.p_init / 2 ** sum(iteration > after for after in _HALVED_AFTER)
        return max(1, min(round(math.sqrt(share * height * width)), min(height, width) - 1))


class RandomSearch(Search):
    """The loop of Square; `attack` gives the hyperparameters."""

    def __init__(self, attack: Square, aim: Aim, seed: int):
        # An untargeted attack compares margins, a targeted one the target's probability (section 3.1 of the paper).
        loss = loss_for(aim, "ce" if aim == "given" else "margin")
        super().__init__(steps=attack.queries, aim=aim, loss=loss, gradients=0)
        self.attack, self.seed = attack, seed
        self.sides = torch.empty(0, dtype=torch.int64)  # by iteration, once the size of the images is known

    def begin(self, fresh: State) -> None:
        """Bound the ball; ``best`` stays the image until the stripes have been queried."""
        x0, eps = fresh["x0"], self.attack.eps
        fresh["low"], fresh["high"] = (x0 - eps).clamp_(0, 1), (x0 + eps).clamp_(0, 1)
        if not len(self.sides):
            sides = [self.attack.side(i, *x0.shape[2:]) for i in range(self.steps)]
            self.sides = torch.tensor(sides, device=x0.device)

    def step(self, oracle: Oracle, state: State) -> None:
        """Propose, query, and keep what is nearer to the aim."""
        proposal = self.propose(state)
        logits = oracle.logits(proposal)
        fooled = reached(self.aim, logits, state["y"], state["target"])
        loss = self.loss(logits, state["y"], state["target"]).masked_fill(fooled, float("inf"))
        better = loss > state["best_loss"]
        state["fooled"].copy_(fooled)
        torch.maximum(loss, state["best_loss"], out=state["best_loss"])
        torch.where(better[:, None, None, None], proposal, state["best"], out=state["best"])

    def propose(self, state: State) -> Float[Tensor, "n c h w"]:
        """The next point of each item: stripes at first, then one square more at a time."""
        best, low, high, done = state["best"], state["low"], state["high"], state["step"]
        channels, height, width = best.shape[1:]
        numbers = uniform_at(self.seed, state["key"] + done * _ITERATION, channels + 3)
        side = self.sides[(done - 1).clamp_min(0)]
        # Algorithm 2 draws the corner from 0..w-h inclusive; the reference code leaves the last row and column out.
        corner = [(numbers[:, i] * (length - side + 1)).long() for i, length in ((0, height), (1, width))]
        mask = squares(corner[0], corner[1], side, height, width)
        up = numbers[:, 2 : 2 + channels] < 0.5
        proposal = torch.where(mask, torch.where(up[:, :, None, None], high, low), best)
        # At most one pattern of signs leaves the square as it is; a row that drew it draws among the others.
        same = (proposal == best).all(dim=(1, 2, 3)).nonzero().squeeze(1)
        if len(same):
            up = up[same] ^ _nonzero_bits(numbers[same, -1], channels)
            content = torch.where(up[:, :, None, None], high[same], low[same])
            proposal[same] = torch.where(mask[same], content, best[same])
        first = (done == 0).nonzero().squeeze(1)
        if len(first):
            up = uniform_at(self.seed, state["key"][first], channels * width).view(-1, channels, 1, width) < 0.5
            proposal[first] = torch.where(up, high[first], low[first])
        return proposal


def squares(
    top: Int64[Tensor, " n"], left: Int64[Tensor, " n"], side: Int64[Tensor, " n"], height: int, width: int
) -> Bool[Tensor, "n 1 h w"]:
    """Masks of one square each, from the position of its corner and its side, in pixels."""
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    vertical = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    horizontal = (columns >= left[:, None]) & (columns < (left + side)[:, None])
    return vertical[:, None, :, None] & horizontal[:, None, None, :]


def _nonzero_bits(uniforms: Tensor, count: int) -> Tensor:
    """One of the patterns of `count` bits that are not all zero, drawn uniformly (beyond 16 bits, of the first 16)."""
    drawn = min(count, 16)
    number = 1 + (uniforms * (2**drawn - 1)).long()
    bits = (number[:, None] >> torch.arange(drawn, device=uniforms.device)) & 1
    return F.pad(bits, (0, count - drawn)).bool()
