"""SimBA: go through the directions of an orthonormal basis in random order; keep a step along one if the true class
becomes less likely, else try the step back.

Nothing is estimated and nothing is tuned but the length of a step. Directions are the two-dimensional cosines, low
frequencies first if wanted, or single pixels.

Guo et al., "Simple Black-box Adversarial Attacks", ICML 2019, arXiv:1905.07121, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import project
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["SimBA", "cosines"]


@dataclass(frozen=True, kw_only=True)
class SimBA(
    BallAttack,
    id="simba",
    title="SimBA",
    paper=Paper(title="Simple Black-box Adversarial Attacks", arxiv="1905.07121", venue="ICML", year=2019),
):
    """Simple black-box attack.

    A strong baseline in a few lines, and the natural one for l_2: after k accepted steps the perturbation is at most
    ``step * sqrt(k)`` long, whatever the size of the image. It reads the true class's score only, and costs one query
    for the image and about 1.4 for each direction.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf. The paper has none, for the number of
            steps bounds the length; here the perturbation is pulled back to the ball before each query.
        norm: ``"l2"``, the paper's, or ``"linf"``.
        queries: budget per sample.
        step: length of a step, l_2.
        basis: ``"dct"``, two-dimensional cosines in each channel, or ``"pixel"``.
        frequencies: of the cosines, only the lowest so many vertically and horizontally; none takes all. The paper
            takes 28 for ImageNet.
    """

    eps: Annotated[float, Field(ge=0)] = 0.5
    norm: Literal["l2", "linf"] = "l2"
    queries: Annotated[int, Field(ge=2)] = 10_000
    step: Annotated[float, Field(gt=0)] = 0.2
    basis: Literal["dct", "pixel"] = "dct"
    frequencies: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def search(self, aim: Aim, seed: int) -> CoordinateTrial:
        """The trial of directions with these hyperparameters."""
        return CoordinateTrial(self, aim, seed)


class CoordinateTrial(Search):
    """The loop of SimBA; `attack` gives the hyperparameters.

    An item's state is the sum of its accepted steps, its order of directions, how many of them are settled, and whether
    the present one has been tried backwards in vain.
    """

    def __init__(self, attack: SimBA, aim: Aim, seed: int):
        loss = _target_odds if aim == "given" else _error_odds
        super().__init__(steps=attack.queries, aim=aim, loss=loss, gradients=0)
        self.attack, self.seed = attack, seed
        self.vertical = self.horizontal = torch.empty(0)

    def begin(self, fresh: State) -> None:
        """Shuffle the directions."""
        x0, a = fresh["x0"], self.attack
        if not len(self.vertical):
            make = cosines if a.basis == "dct" else torch.eye
            kept = a.frequencies if a.basis == "dct" else None
            self.vertical, self.horizontal = (make(n).to(x0.device)[:kept] for n in x0.shape[2:])
        directions = x0.shape[1] * len(self.vertical) * len(self.horizontal)
        fresh["order"] = uniform_at(self.seed, fresh["key"], directions).argsort(dim=1).int()
        fresh["offset"] = torch.zeros_like(x0)
        fresh["settled"] = torch.zeros_like(fresh["step"])
        fresh["backwards_failed"] = torch.zeros_like(fresh["fooled"])

    def step(self, oracle: Oracle, state: State) -> None:
        """Query one step along the present direction, and keep it if it helps; the very first query is the image."""
        a, forwards, first = self.attack, state["backwards_failed"], state["step"] == 0
        length = torch.where(forwards, a.step, -a.step).masked_fill(first, 0)
        order = state["order"]
        turn = order.gather(1, (state["settled"] % order.shape[1])[:, None]).squeeze(1)
        offset = state["offset"] + self.directions(turn.long(), state["x0"]) * length[:, None, None, None]
        point = project(state["x0"] + offset, state["x0"], a.eps, a.norm)
        better = self.note(state, point, oracle.logits(point))
        torch.where(better[:, None, None, None], offset, state["offset"], out=state["offset"])
        done = (better | forwards) & ~first
        state["settled"].add_(done)
        state["backwards_failed"].copy_(~done & ~first)

    def directions(self, which: Int64[Tensor, " n"], like: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The basis vectors of these numbers, as images."""
        rows, columns = len(self.vertical), len(self.horizontal)
        plane = self.vertical[which // columns % rows][:, :, None] * self.horizontal[which % columns][:, None, :]
        images = torch.zeros_like(like)
        images[torch.arange(len(which), device=which.device), which // (rows * columns)] = plane
        return images


def cosines(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal cosines on `size` points, one per row, the lowest frequency first (the type-II transform)."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / size * frequency * position) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves.float()


def _error_odds(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Falls with the true class's probability, and keeps falling where that is 1 to rounding: its log odds, negated."""
    return -_odds(logits, y)


def _target_odds(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _odds(logits, target)


def _odds(logits: Tensor, which: Tensor) -> Tensor:
    others = logits.scatter(1, which[:, None], -float("inf"))
    return logits.gather(1, which[:, None]).squeeze(1) - others.logsumexp(1)
