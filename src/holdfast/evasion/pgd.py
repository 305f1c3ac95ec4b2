"""PGD: climb the loss by steps of fixed length, coming back to the ball after each.

The step goes along the sign of the gradient (l_inf), the gradient itself (l_2), or the signs of its largest entries
(l_1), from a random point of the ball. The point returned is the first that fools the model, or, of all points of all
restarts, the one nearest to it.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor

from holdfast.errors import UserError
from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import Norm, project, steepest, uniforms_needed, within
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, LossName, loss_for, reached
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["PGD", "Ascent"]


@dataclass(frozen=True, kw_only=True)
class PGD(
    BallAttack,
    id="pgd",
    paper=Paper(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        arxiv="1706.06083",
        venue="ICLR",
        year=2018,
    ),
):
    """Projected gradient descent.

    The workhorse white-box attack. A model without masked gradients that withstands it with several restarts rarely
    falls much further; still, only an ensemble of attacks can tell.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``. An l_1 step moves the 2 % of the pixels that have the largest gradients;
            `apgd`, which adapts that share, is the stronger attack there.
        steps: gradient steps per restart.
        step: length of a step, in the units of `eps`; none chooses it, see `step_length`.
        restarts: attempts from different starts; the earliest success counts.
        random_start: start at a uniformly random point of the ball, not at the image.
        momentum: share of the accumulated direction kept in each step, as in MI-FGSM (Dong et al. 2018); 0 is none.
        loss: ``"ce"``; or ``"margin"`` or ``"dlr"``, which keep their gradient when the softmax saturates (the latter
            needs at least 3 classes, and 4 with targets).
        targets: lead one attempt each to this many of the likeliest wrong classes (MultiTargeted, Gowal et al. 2019);
            0 climbs the loss of the true class instead.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Norm = "linf"
    steps: Annotated[int, Field(ge=1)] = 20
    step: Annotated[float, Field(gt=0)] | None = None
    restarts: Annotated[int, Field(ge=1)] = 1
    random_start: bool = True
    momentum: Annotated[float, Field(ge=0)] = 0.0
    loss: LossName = "ce"
    targets: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    @property
    def step_length(self) -> float:
        """The length of a step: `step`, or what is customary for the number of steps.

        For l_inf a quarter of eps in 7 to 20 steps, which is 2/255 at 8/255, and 2.5 eps / steps beyond, but no less
        than eps / 32; for l_2 2.5 eps / steps; for l_1, where coming back to the ball undoes most of a step,
        10 eps / steps; never more than eps.
        """
        if self.step is not None:
            return self.step
        length = (10 if self.norm == "l1" else 2.5) * self.eps / self.steps
        if self.norm == "linf" and self.steps >= 7:
            length = self.eps / 4 if self.steps <= 20 else max(length, self.eps / 32)
        return min(length, self.eps)

    @property
    def tries(self) -> int:
        """One per restart."""
        return self.restarts

    @property
    def ranks(self) -> int:
        """The number of target classes."""
        return self.targets

    def search(self, aim: Aim, seed: int) -> Ascent:
        """The ascent with these hyperparameters."""
        return Ascent(self, aim, seed)


class Ascent(Search):
    """The loop of PGD; `attack` gives the hyperparameters."""

    def __init__(self, attack: PGD, aim: Aim, seed: int):
        super().__init__(steps=attack.steps, aim=aim, loss=loss_for(aim, attack.loss), gradients=1)
        self.attack, self.seed = attack, seed

    def begin(self, fresh: State) -> None:
        """Start in the ball, or at the image."""
        x0, a = fresh["x0"], self.attack
        fresh["x"] = x0.clone()
        if a.random_start:
            numbers = uniform_at(self.seed, fresh["key"], uniforms_needed(a.norm, x0[0].numel()))
            fresh["x"] = within(x0, a.eps, a.norm, numbers)
        if a.momentum:
            fresh["direction"] = torch.zeros_like(x0)

    def step(self, oracle: Oracle, state: State) -> None:
        """Query, note the point if it is the best so far, and step up the gradient."""
        a, x = self.attack, state["x"]
        logits, loss, gradient = oracle.gradient(x, self.loss, state["y"], state["target"])
        state["fooled"].copy_(reached(self.aim, logits, state["y"], state["target"]))
        loss = loss.masked_fill(state["fooled"], float("inf"))
        better = loss > state["best_loss"]
        state["best_loss"].copy_(torch.where(better, loss, state["best_loss"]))
        torch.where(_rows(better, x), x, state["best"], out=state["best"])
        if a.momentum:
            torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)  # or the memory would never lose them
            mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = state["direction"].mul_(a.momentum).add_(gradient / mean).clone()
        x.add_(steepest(gradient, a.norm), alpha=a.step_length)
        project(x, state["x0"], a.eps, a.norm)

    def unqueried(self, state: State) -> Tensor:
        """The point after the last step."""
        return state["x"]


class _WithRadius(Protocol):
    id: ClassVar[str]

    @property
    def norm(self) -> Norm: ...

    @property
    def eps(self) -> float | None: ...


def check_eps(attack: _WithRadius) -> None:
    """Refuse a radius that is more than the whole box.

    Raises:
        UserError: the norm is l_inf and eps is over 1.
    """
    if attack.norm == "linf" and attack.eps is not None and attack.eps > 1:
        hint = f" Did you mean {attack.eps:g}/255?" if attack.eps <= 255 else ""
        raise UserError(f"{attack.id}: eps must be a number in [0, 1] for norm 'linf', got {attack.eps:g}.{hint}")


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.ndim - 1))
