"""Random noise: the best of so many random points of the ball, the floor that every attack must beat.

What it finds needs no attack: those images stand so near the boundary that chance finds it. An attack that finds no
more than this, on the same budget, has learnt nothing from the model's answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import uniforms_needed, within
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, loss_for
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.run import uniform_at

__all__ = ["RandomNoise"]

_DRAW = 0x2F0B4C47A97DF25B  # odd: keeps the random numbers of an item's draws apart


@dataclass(frozen=True, kw_only=True)
class RandomNoise(BallAttack, id="random-noise", title="Random noise"):
    """Random points of the ball.

    The baseline of every black-box attack: give it the same number of queries and compare. It costs one forward pass
    a query, reads nothing but who is fooled, and against a network of any use finds little.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        queries: points tried per sample.
        points: ``"uniform"`` fills the ball evenly; ``"corners"`` moves every pixel equally far up or down, to
            the radius, which for l_inf does more harm.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    queries: Annotated[int, Field(ge=1)] = 100
    points: Literal["uniform", "corners"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def search(self, aim: Aim, seed: int) -> Guessing:
        """The guessing with these hyperparameters."""
        return Guessing(self, aim, seed)


class Guessing(Search):
    """The loop of random noise; `attack` gives the hyperparameters."""

    def __init__(self, attack: RandomNoise, aim: Aim, seed: int):
        super().__init__(steps=attack.queries, aim=aim, loss=loss_for(aim, "margin"), gradients=0)
        self.attack, self.seed = attack, seed

    def begin(self, fresh: State) -> None:
        """Nothing is remembered but the best point."""

    def step(self, oracle: Oracle, state: State) -> None:
        """Draw a point and query it."""
        self.consider(oracle, state, self.draw(state))

    def draw(self, state: State) -> Tensor:
        """The next point of each item."""
        a, x0 = self.attack, state["x0"]
        pixels = x0[0].numel()
        numbers = uniform_at(self.seed, state["key"] + state["step"] * _DRAW, uniforms_needed(a.norm, pixels))
        if a.points == "uniform":
            return within(x0, a.eps, a.norm, numbers)
        far = a.eps if a.norm == "linf" else a.eps / pixels**0.5
        up = (numbers[:, :pixels] < 0.5).view(x0.shape)
        return (x0 + torch.where(up, far, -far)).clamp_(0, 1)
