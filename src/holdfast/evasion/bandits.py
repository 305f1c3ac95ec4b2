"""Bandits-TD: NES that remembers what it has learnt, from step to step and from pixel to neighbouring pixel.

Gradients change little between steps (T, for time) and between neighbours (D, for data). So a running guess of the
gradient is kept, on a coarser grid than the image's, and every pair of queries only asks whether to bend it this way
or that way: two queries a step where NES needs dozens.

Ilyas et al., "Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors", ICLR 2019, arXiv:1807.07978,
algorithms 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import normals, project, steepest
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, LossName, loss_for
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["Bandits", "exponentiated"]

_STEP = 0x5851F42D4C957F2D  # odd: keeps the random numbers of an item's steps apart
_SURE = 8.0  # tanh of it is 1 - 2e-7: in float32 a guess that went further could not come back


class _Scales(NamedTuple):
    exploration: float
    probe: float
    rate: float
    share: float  # of eps, for the step


_PAPER = {"linf": _Scales(1.0, 0.1, 100.0, 0.2), "l2": _Scales(0.01, 0.01, 0.1, 0.1)}


@dataclass(frozen=True, kw_only=True)
class Bandits(
    BallAttack,
    id="bandits",
    paper=Paper(
        title="Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors",
        arxiv="1807.07978",
        venue="ICLR",
        year=2019,
    ),
):
    """Bandits with time- and data-dependent priors.

    Several times fewer queries than NES for the same success, on large images above all, where neighbours agree. A step
    costs three queries: the pair, and one at the point reached, which the paper does not count.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        queries: budget per sample.
        tile: side of the grid on which the gradient is guessed; an image that is smaller has a grid of its size. The
            paper takes 50 for ImageNet; 20 is what Al-Dujaili & O'Reilly (2020) take for CIFAR-10.
        exploration: how far the two guesses of a pair lie apart. None of these four takes the paper's value for the
            norm: 1 and 0.01.
        probe: l_2 length of the way from the image to where a guess is tried, in pixel units; 0.1 and 0.01.
        rate: of learning; 100, exponentiated gradient in [-1, 1], and 0.1, plain gradient.
        step: of the image along the guess, in the units of `eps`; a fifth and a tenth of it.
        loss: ``"margin"`` keeps its slope when the softmax saturates; ``"ce"`` is the paper's.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    queries: Annotated[int, Field(ge=3)] = 10_000
    tile: Annotated[int, Field(ge=1)] = 20
    exploration: Annotated[float, Field(gt=0)] | None = None
    probe: Annotated[float, Field(gt=0)] | None = None
    rate: Annotated[float, Field(gt=0)] | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    loss: LossName = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    @property
    def scales(self) -> tuple[float, float, float, float]:
        """`exploration`, `probe`, `rate` and the length of a step, with the paper's for those not given."""
        paper = _PAPER[self.norm]
        return (
            self.exploration or paper.exploration,
            self.probe or paper.probe,
            self.rate or paper.rate,
            self.step or paper.share * self.eps,
        )

    def search(self, aim: Aim, seed: int) -> Bandit:
        """The bandit with these hyperparameters."""
        return Bandit(self, aim, seed)


class Bandit(Search):
    """The loop of Bandits-TD; `attack` gives the hyperparameters."""

    def __init__(self, attack: Bandits, aim: Aim, seed: int):
        loss = loss_for(aim, attack.loss)
        super().__init__(steps=attack.queries // 3, aim=aim, loss=loss, gradients=0, queries=3)
        self.attack, self.seed = attack, seed

    def begin(self, fresh: State) -> None:
        """Start at the image, without an opinion."""
        x0, tile = fresh["x0"], self.attack.tile
        fresh["x"] = x0.clone()
        fresh["guess"] = x0.new_zeros(*x0.shape[:2], min(tile, x0.shape[2]), min(tile, x0.shape[3]))

    def step(self, oracle: Oracle, state: State) -> None:
        """Try the guess bent both ways, bend it the better way, follow it, and query the point reached."""
        a, x, guess = self.attack, state["x"], state["guess"]
        exploration, probe, rate, length = a.scales
        cells = guess[0].numel()
        numbers = uniform_at(self.seed, state["key"] + state["step"] * _STEP, cells)
        bend = normals(numbers).mul_(exploration * (2 / cells) ** 0.5).view(guess.shape)
        up, down = (self.loss_along(oracle, state, guess + side * bend, probe) for side in (1, -1))
        gradient = bend * ((up - down) / (probe * exploration))[:, None, None, None]
        guess.copy_(exponentiated(guess, gradient, rate) if a.norm == "linf" else guess + rate * gradient)
        x.add_(steepest(self.enlarged(guess, x), a.norm), alpha=length)
        project(x, state["x0"], a.eps, a.norm)
        self.note(state, x, oracle.logits(x))

    def loss_along(self, oracle: Oracle, state: State, guess: Tensor, probe: float) -> Tensor:
        """The loss a little way along a guess of the gradient."""
        point = state["x"].add(steepest(self.enlarged(guess, state["x"]), "l2"), alpha=probe).clamp_(0, 1)
        return self.loss(oracle.logits(point), state["y"], state["target"])

    def enlarged(self, guess: Tensor, x: Tensor) -> Tensor:
        """A new tensor in the size of the images, every cell of the guess spread over the pixels it stands for."""
        large = F.interpolate(guess, size=x.shape[2:], mode="nearest")
        return large.clone(memory_format=torch.preserve_format)


def exponentiated(guess: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """A step of exponentiated gradient on numbers in [-1, 1].

    The paper's formula for ``r = (1 + guess) / 2`` weighs r by e^(rate gradient) and 1 - r by e^(-rate gradient). That
    is plain ascent of the inverse hyperbolic tangent, written so that nothing overflows.
    """
    return torch.atanh(guess).add(gradient, alpha=rate).clamp_(-_SURE, _SURE).tanh_()
