"""NES: estimate the gradient from the scores at pairs of random points on either side, and climb it.

The difference of the loss at ``x + s u`` and ``x - s u`` tells its slope along u. The mean of u times its slope, over
random u, is the gradient of the loss smoothed by a Gaussian; its projected ascent is PGD without gradients.

Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018, arXiv:1804.08598,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import normals, project, steepest
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, Loss, LossName, loss_for
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["NES", "slopes", "smoothed_gradient"]

_PAIR = 0x369DEA0F31A53F85  # odd: keeps the random numbers of an item's pairs apart


@dataclass(frozen=True, kw_only=True)
class NES(
    BallAttack,
    id="nes",
    title="Natural evolution strategies (NES)",
    paper=Paper(
        title="Black-box Adversarial Attacks with Limited Queries and Information",
        arxiv="1804.08598",
        venue="ICML",
        year=2018,
    ),
):
    """Natural evolution strategies.

    The plainest attack on scores: PGD with a gradient measured by finite differences. It needs many queries, most of
    them for slopes along directions that do not matter; Square and SignHunter need far fewer. It is of use because it
    follows the gradient: where it stalls and they do not, a defence hides slopes from whoever measures them.

    A step costs ``2 pairs + 1`` queries, the last of them at the point reached, so that a success is seen as soon as it
    is there; what is left of the budget after the last whole step is not spent. Through an interface that takes 8-bit
    images the pairs coincide: give `sigma` at least ``sqrt(pixels) / 255``.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        queries: budget per sample.
        pairs: random directions per step. With a budget too small for them, as many as fit.
        sigma: how far the points of a pair lie from the middle, l_2 length on average, in pixel units. This and `pairs`
            are what Al-Dujaili & O'Reilly (2020) tuned for CIFAR-10; the paper's, for ImageNet, are 0.001 a pixel
            and 25.
        step: length of a step, in the units of `eps`; none takes a quarter of eps for l_inf, a tenth for l_2.
        loss: ``"margin"`` keeps its slope when the softmax saturates; ``"ce"`` is the paper's.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    queries: Annotated[int, Field(ge=3)] = 10_000
    pairs: Annotated[int, Field(ge=1)] = 20
    sigma: Annotated[float, Field(gt=0)] = 0.01
    step: Annotated[float, Field(gt=0)] | None = None
    loss: LossName = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    @property
    def step_length(self) -> float:
        """The length of a step: `step`, or what is customary in the norm."""
        return self.step or self.eps / (4 if self.norm == "linf" else 10)

    def search(self, aim: Aim, seed: int) -> Climb:
        """The climb with these hyperparameters."""
        return Climb(self, aim, seed)


class Climb(Search):
    """The loop of NES; `attack` gives the hyperparameters."""

    def __init__(self, attack: NES, aim: Aim, seed: int):
        self.pairs = min(attack.pairs, (attack.queries - 1) // 2)
        cost = 2 * self.pairs + 1
        loss = loss_for(aim, attack.loss)
        super().__init__(steps=attack.queries // cost, aim=aim, loss=loss, gradients=0, queries=cost)
        self.attack, self.seed = attack, seed

    def begin(self, fresh: State) -> None:
        """Start at the image."""
        fresh["x"] = fresh["x0"].clone()

    def step(self, oracle: Oracle, state: State) -> None:
        """Measure the gradient, step up, and query the point reached."""
        a, x = self.attack, state["x"]
        done = state["step"] * self.pairs

        def direction(pair: int) -> Tensor:
            numbers = uniform_at(self.seed, state["key"] + (done + pair) * _PAIR, x[0].numel())
            return normals(numbers).mul_((2 / x[0].numel()) ** 0.5).view(x.shape)

        gradient = smoothed_gradient(oracle, x, direction, self.pairs, a.sigma, self.loss, state["y"], state["target"])
        x.add_(steepest(gradient, a.norm), alpha=a.step_length)
        project(x, state["x0"], a.eps, a.norm)
        self.note(state, x, oracle.logits(x))


def smoothed_gradient(
    oracle: Oracle,
    x: Tensor,
    direction: Callable[[int], Tensor],
    count: int,
    sigma: float,
    loss: Loss,
    y: Tensor,
    target: Tensor,
) -> Tensor:
    """The mean of random directions times the loss's slope along them.

    Args:
        oracle: the model; it is asked for ``2 count`` rows for each image.
        x: images (N, C, H, W).
        direction: gives the random directions by number, from 0 to ``count - 1``, each like `x`.
        count: of directions.
        sigma: how far to go along them, both ways.
        loss, y, target: what to climb; see `holdfast.evasion.losses`.
    """
    gradient = torch.zeros_like(x)
    # One after the other, that rounding should not depend on how many share a pass.
    for way, slope in slopes(oracle, x, direction, count, sigma, loss, y, target):
        gradient.addcmul_(way, slope[:, None, None, None], value=1 / count)
    return gradient


def slopes(
    oracle: Oracle,
    x: Tensor,
    direction: Callable[[int], Tensor],
    count: int,
    sigma: float,
    loss: Loss,
    y: Tensor,
    target: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Directions, each with the loss's slope along it at every image, shape (N,), by central differences.

    Arguments as in `smoothed_gradient`. As many directions share a pass as fill it.
    """
    together = max(1, oracle.limit // (2 * len(x)))
    for first in range(0, count, together):
        ways = [direction(k) for k in range(first, min(first + together, count))]
        points = torch.cat([x + side * way for way in ways for side in (sigma, -sigma)]).clamp_(0, 1)
        many = 2 * len(ways)
        losses = loss(oracle.logits(points), y.repeat(many), target.repeat(many)).view(len(ways), 2, len(x))
        yield from zip(ways, (losses[:, 0] - losses[:, 1]) / (2 * sigma), strict=True)
