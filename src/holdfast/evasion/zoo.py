"""ZOO: Carlini and Wagner's attack with every partial derivative measured, for a few random coordinates at a time.

A symmetric difference along one coordinate gives one partial derivative of the hinge ``log p_true - max log p_other``;
Adam, with moments and a count of its own for each coordinate, turns it into a step.

Chen et al., "ZOO: Zeroth Order Optimization Based Black-box Attacks to Deep Neural Networks without Training Substitute
Models", AISec 2017, arXiv:1708.03999, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import project
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, Loss, loss_for
from holdfast.evasion.nes import slopes
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["ZOO", "partial_derivatives"]

_STEP = 0x14057B7EF767814F  # odd: keeps the random numbers of an item's steps apart
_BETA1, _BETA2 = 0.9, 0.999


@dataclass(frozen=True, kw_only=True)
class ZOO(
    BallAttack,
    id="zoo",
    title="Zeroth-order optimisation (ZOO)",
    paper=Paper(
        title="ZOO: Zeroth Order Optimization Based Black-box Attacks to Deep Neural Networks without Training "
        "Substitute Models",
        arxiv="1708.03999",
        venue="AISec",
        year=2017,
    ),
):
    """Zeroth-order optimisation.

    The first attack of its kind, and the most expensive: two queries for every partial derivative, hence thousands
    before each pixel of a small image has been looked at once. Its derivatives are the most exact of all, which tells
    whether a model hides its gradients from others, who look at random mixtures of them.

    The paper lets the hinge and the length of the perturbation compete; here the length is bounded by the ball, and
    only the hinge is left. Coordinates are drawn uniformly; the paper's sampling by importance, for large images, is
    left out.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        queries: budget per sample. A step costs two for each coordinate, and one at the point reached.
        coordinates: looked at in each step. With a budget too small for them, as many as fit.
        step: Adam's, in pixel units. None takes the paper's 0.01 for l_2, and eps for l_inf: a coordinate is rarely
            seen twice, and there is no reason to stop short of the ball.
        difference: to either side of the point, in pixel units. Through an interface that takes 8-bit images, give
            1/255.
        resolution: the perturbation has at most so many rows and columns, each spread over several pixels. The paper
            goes from 32 to 128 for ImageNet; fewer find a way sooner and end less far.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    queries: Annotated[int, Field(ge=3)] = 10_000
    coordinates: Annotated[int, Field(ge=1)] = 128
    step: Annotated[float, Field(gt=0)] | None = None
    difference: Annotated[float, Field(gt=0)] = 1e-4
    resolution: Annotated[int, Field(ge=1)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    @property
    def step_length(self) -> float:
        """Adam's step: `step`, or what suits the norm."""
        return self.step or (self.eps if self.norm == "linf" else 0.01)

    def search(self, aim: Aim, seed: int) -> CoordinateAdam:
        """The descent with these hyperparameters."""
        return CoordinateAdam(self, aim, seed)


class CoordinateAdam(Search):
    """The loop of ZOO; `attack` gives the hyperparameters.

    The hinge of log-probabilities is the margin of the logits: what the softmax subtracts is the same for both.
    """

    def __init__(self, attack: ZOO, aim: Aim, seed: int):
        self.coordinates = min(attack.coordinates, (attack.queries - 1) // 2)
        cost = 2 * self.coordinates + 1
        loss = loss_for(aim, "margin")
        super().__init__(steps=attack.queries // cost, aim=aim, loss=loss, gradients=0, queries=cost)
        self.attack, self.seed = attack, seed

    def begin(self, fresh: State) -> None:
        """Start at the image, with no moments."""
        x0, most = fresh["x0"], self.attack.resolution
        fresh["x"] = x0.clone()
        fresh["offset"] = x0.new_zeros(*x0.shape[:2], *(min(most, n) for n in x0.shape[2:]))
        cells = fresh["offset"].flatten(1)
        fresh["mean"], fresh["square"], fresh["seen"] = (torch.zeros_like(cells) for _ in range(3))

    def step(self, oracle: Oracle, state: State) -> None:
        """Measure some partial derivatives, let Adam step along them, and query the point reached."""
        a, x, offset = self.attack, state["x"], state["offset"]
        cells = offset[0].numel()
        numbers = uniform_at(self.seed, state["key"] + state["step"] * _STEP, cells)
        # More coordinates than there are: some are looked at twice, for the price in the books is fixed.
        chosen = numbers.argsort(dim=1)[:, torch.arange(self.coordinates, device=x.device) % cells]
        grid = (offset.shape[2], offset.shape[3])
        gradient = partial_derivatives(oracle, x, chosen, grid, a.difference, self.loss, state["y"], state["target"])
        self.adam(state, chosen, gradient)
        x.copy_(state["x0"]).add_(_enlarged(offset, x))
        project(x, state["x0"], a.eps, a.norm)
        self.note(state, x, oracle.logits(x))

    def adam(self, state: State, chosen: Tensor, gradient: Tensor) -> None:
        """A step of Adam on the chosen cells, then back into the ball."""
        a, offset = self.attack, state["offset"]
        mean = _BETA1 * state["mean"].gather(1, chosen) + (1 - _BETA1) * gradient
        square = _BETA2 * state["square"].gather(1, chosen) + (1 - _BETA2) * gradient**2
        seen = state["seen"].gather(1, chosen) + 1
        for name, values in (("mean", mean), ("square", square), ("seen", seen)):
            state[name].scatter_(1, chosen, values)
        move = (mean / (1 - _BETA1**seen)) / ((square / (1 - _BETA2**seen)).sqrt() + 1e-8)
        cells = offset.flatten(1)
        cells = cells.scatter(1, chosen, cells.gather(1, chosen) + a.step_length * move)
        offset.copy_(cells.view(offset.shape))
        if a.norm == "linf":
            offset.clamp_(-a.eps, a.eps)
        else:
            length = torch.linalg.vector_norm(_enlarged(offset, state["x"]).flatten(1), dim=1)
            offset.mul_((a.eps / length.clamp_min(1e-12)).clamp_max(1)[:, None, None, None])


def partial_derivatives(
    oracle: Oracle,
    x: Float[Tensor, "n c h w"],
    chosen: Int64[Tensor, "n m"],
    grid: tuple[int, int],
    difference: float,
    loss: Loss,
    y: Tensor,
    target: Tensor,
) -> Float[Tensor, "n m"]:
    """The loss's derivatives at `x` by some of the cells of a coarser image that is added to it.

    Args:
        oracle: the model; it is asked for ``2 m`` rows for each image.
        x: the images.
        chosen: the cells' numbers, channel by channel and row by row, for each image its own.
        grid: rows and columns of the coarser image; those of `x` for single pixels.
        difference: how far to go to either side.
        loss, y, target: see `holdfast.evasion.losses`.
    """
    cells = torch.zeros(len(x), x.shape[1], *grid, device=x.device)

    def along(number: int) -> Tensor:
        one = cells.flatten(1).scatter(1, chosen[:, number : number + 1], 1.0).view(cells.shape)
        return _enlarged(one, x)

    count = chosen.shape[1]
    return torch.stack([slope for _, slope in slopes(oracle, x, along, count, difference, loss, y, target)], 1)


def _enlarged(grid: Tensor, x: Tensor) -> Tensor:
    return grid if grid.shape == x.shape else F.interpolate(grid, size=x.shape[2:], mode="nearest")
