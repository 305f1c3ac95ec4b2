"""SignHunter: find the signs of the gradient by flipping ever smaller groups of them and keeping what helps.

Start at the corner of the ball where all pixels are up. Flip all, then each half, each quarter and so on down to single
pixels; a flip stays if the loss does not fall. There is no step to tune and nothing is estimated, and a budget of twice
the number of pixels goes through all of them.

Al-Dujaili & O'Reilly, "Sign Bits Are All You Need for Black-Box Attacks", ICLR 2020, arXiv:1902.06894, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, LossName, loss_for
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pool import State
from holdfast.methods import Paper

__all__ = ["SignHunter", "chunks"]


@dataclass(frozen=True, kw_only=True)
class SignHunter(
    BallAttack,
    id="signhunter",
    title="SignHunter",
    paper=Paper(title="Sign Bits Are All You Need for Black-Box Attacks", arxiv="1902.06894", venue="ICLR", year=2020),
):
    """SignHunter (l_inf).

    Among the most query-efficient attacks on scores, without a single hyperparameter, and without random numbers. All
    its queries are corners of the ball, so it is loud: a defence that looks at its inputs sees it at once.

    Args:
        eps: radius of the l_inf ball, in pixel units of [0, 1].
        queries: budget per sample, the one for the first corner included.
        loss: ``"margin"``, or ``"ce"``, the paper's.
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 8 / 255
    queries: Annotated[int, Field(ge=1)] = 10_000
    loss: LossName = "margin"

    norm = "linf"

    def search(self, aim: Aim, seed: int) -> Flips:
        """The flips with these hyperparameters."""
        return Flips(self, aim)


class Flips(Search):
    """The loop of SignHunter; `attack` gives the hyperparameters."""

    def __init__(self, attack: SignHunter, aim: Aim):
        super().__init__(steps=attack.queries, aim=aim, loss=loss_for(aim, attack.loss), gradients=0)
        self.attack = attack
        self.chunks = torch.empty(0, 2, dtype=torch.int64)  # in the order of their flips, for one sweep

    def begin(self, fresh: State) -> None:
        """All signs are up."""
        x0 = fresh["x0"]
        fresh["up"] = torch.ones_like(x0, dtype=torch.bool)
        if not len(self.chunks):
            self.chunks = chunks(x0[0].numel()).to(x0.device)

    def step(self, oracle: Oracle, state: State) -> None:
        """Flip the next group of signs, query, and keep the flip unless it harms; the first query flips nothing."""
        x0, up, eps = state["x0"], state["up"], self.attack.eps
        first = state["step"] == 0
        group = self.chunks[(state["step"] - 1) % len(self.chunks)]
        pixel = torch.arange(x0[0].numel(), device=x0.device)
        flip = (pixel >= group[:, :1]) & (pixel < group[:, 1:]) & ~first[:, None]
        tried = up ^ flip.view(x0.shape)
        point = torch.where(tried, x0 + eps, x0 - eps).clamp_(0, 1)
        kept = self.note(state, point, oracle.logits(point), ties=True)
        torch.where(kept[:, None, None, None], tried, up, out=up)


def chunks(pixels: int) -> Tensor:
    """The groups of one sweep, as first pixel and first pixel beyond, shape (M, 2): all, halves, ..., single pixels."""
    groups = []
    for level in range(math.ceil(math.log2(pixels)) + 1):
        size = math.ceil(pixels / 2**level)
        groups += [(start, min(start + size, pixels)) for start in range(0, pixels, size)]
    return torch.tensor(groups)
