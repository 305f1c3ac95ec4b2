"""APGD: projected gradient ascent with momentum that chooses the length of its steps itself.

Each sample starts with steps as long as the ball is wide. At checkpoints that come closer and closer together, the step
is halved and the search goes back to the best point so far if the loss rose too seldom since the last one, or if
nothing better was found and the step was left alone there. Croce & Hein, "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks", ICML 2020, arXiv:2003.01690, algorithm 1.

For l_1 a step moves only the pixels of the largest gradients, and their share follows how sparse the best perturbation
has become; the search runs in balls of three and two times the radius before it comes to the wanted one. Croce & Hein,
"Mind the box: l_1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.balls import Norm, normals, project, steepest
from holdfast.evasion.loop import Search
from holdfast.evasion.losses import Aim, LossName, loss_for, reached
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper
from holdfast.run import uniform_at

__all__ = ["APGD", "Climb", "SparseClimb"]

_MOMENTUM = 0.75  # the paper's alpha: the weight of the new step; the rest goes to the one before
_INF = float("inf")


@dataclass(frozen=True, kw_only=True)
class APGD(
    BallAttack,
    id="apgd",
    title="Auto-PGD",
    paper=Paper(
        title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        arxiv="2003.01690",
        venue="ICML",
        year=2020,
    ),
):
    """Auto-PGD: PGD without a step length to tune.

    The white-box attack to begin with: at equal cost it is about as strong as PGD with a well chosen step length, or
    stronger, and for l_1 clearly stronger. ``apgd(targets=9)`` is the strongest of its forms and costs up to nine times
    as much. It follows gradients, so it tells little where these are masked; `square` then tells more.

    It costs `steps` passes forward and back for each restart and target of a sample, and ends with the first success.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``. For l_1 two further passes join the three balls.
        steps: per restart.
        restarts: attempts from different starts; the earliest success counts.
        loss: ``"ce"``; or ``"dlr"`` or ``"margin"``, which keep their gradient when the softmax saturates. ``"dlr"``
            needs at least 3 classes.
        targets: lead one attempt each to this many of the likeliest wrong classes of the image, with the targeted DLR
            loss whatever `loss` says; needs at least 4 classes. 0 climbs the loss of the true class instead.
        eot: passes whose gradients and losses are averaged, for models that answer at random (expectation over
            transformation, Athalye et al. 2018); AutoAttack takes 20.
        rho: the step is halved unless the loss rose in more than this share of the steps since the last checkpoint.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Norm = "linf"
    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    loss: LossName = "ce"
    targets: Annotated[int, Field(ge=0)] = 0
    eot: Annotated[int, Field(ge=1)] = 1
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    @property
    def tries(self) -> int:
        """One per restart."""
        return self.restarts

    @property
    def ranks(self) -> int:
        """The number of target classes."""
        return self.targets

    def search(self, aim: Aim, seed: int) -> Climb:
        """The ascent with these hyperparameters."""
        return (SparseClimb if self.norm == "l1" else Climb)(self, aim, seed)

    def periods(self) -> dict[int, int]:
        """At which steps the checkpoints are, with the number of steps since the one before."""
        period, found, step = max(int(0.22 * self.steps), 1), {}, 0
        while (step := step + period) < self.steps:
            found[step] = period
            period = max(period - max(int(0.03 * self.steps), 1), int(0.06 * self.steps), 1)
        return found

    def phases(self) -> list[tuple[float, int]]:
        """The radii of the l_1 search, with the number of steps in each."""
        early = self.steps * 3 // 10
        plan = [(3 * self.eps, early), (2 * self.eps, early), (self.eps, self.steps - 2 * early)]
        return [(radius, steps) for radius, steps in plan if steps]


class Climb(Search):
    """The loop of APGD for l_inf and l_2; `attack` gives the hyperparameters.

    An item's state holds, besides the engine's part, its point ``x``, the ``previous`` one, its highest point with
    loss and gradient (``peak``, ``peak_loss``, ``slope``), the ``length`` of its step, and what the next checkpoint
    will ask: how often the loss rose, whether the step was halved last time, and the highest loss then.
    """

    def __init__(self, attack: APGD, aim: Aim, seed: int, steps: int | None = None):
        steps = steps or attack.steps
        loss = loss_for(aim, "dlr" if attack.targets else attack.loss)
        super().__init__(steps=steps, aim=aim, loss=loss, gradients=attack.eot, queries=attack.eot)
        self.attack, self.seed = attack, seed
        self.periods = _table(attack.periods(), steps)  # 0 where there is no checkpoint

    def begin(self, fresh: State) -> None:
        """Start at a random point of the ball's surface, with steps of its diameter."""
        x0, a = fresh["x0"], self.attack
        numbers = uniform_at(self.seed, fresh["key"], x0[0].numel())
        if a.norm == "linf":
            offset = numbers.mul_(2).sub_(1)
            offset *= a.eps / offset.abs().amax(1, keepdim=True).clamp_min_(1e-12)
        else:
            offset = normals(numbers)
            offset *= a.eps / torch.linalg.vector_norm(offset, dim=1, keepdim=True).clamp_min_(1e-12)
        x = project(x0 + offset.view(x0.shape), x0, a.eps, a.norm)
        self.prepare(fresh, x, 2 * a.eps)
        fresh["previous"] = x.clone()
        fresh["rises"] = torch.zeros_like(fresh["step"])
        fresh["loss"] = torch.full_like(fresh["best_loss"], _INF)  # so that the first one is no rise
        fresh["halved"] = torch.ones_like(fresh["fooled"])
        fresh["peak_before"] = fresh["peak_loss"].clone()
        self.periods = self.periods.to(x0.device)

    def prepare(self, fresh: State, x: Tensor, length: float) -> None:
        """What the norms share."""
        fresh |= {"x": x, "peak": x.clone(), "slope": torch.zeros_like(x)}
        fresh["peak_loss"] = fresh["best_loss"].clone()
        fresh["length"] = torch.full_like(fresh["best_loss"], length)

    def step(self, oracle: Oracle, state: State) -> None:
        """Query, keep what is higher, and at a checkpoint adapt the step; then move."""
        loss, gradient = self.query(oracle, state)
        state["rises"].add_(loss > state["loss"])
        state["loss"].copy_(loss)
        period = self.periods[state["step"]]
        rows = period.nonzero().squeeze(1)
        if len(rows):
            self.check(state, gradient, rows, period[rows])
        self.move(state, gradient)

    def query(self, oracle: Oracle, state: State) -> tuple[Tensor, Tensor]:
        """The loss and its gradient at each item's point, noted where they are the best so far."""
        x = state["x"]
        logits, loss, gradient = self.ask(oracle, state)
        fooled = reached(self.aim, logits, state["y"], state["target"])
        self.keep(state, loss, fooled)
        higher = loss > state["peak_loss"]
        state["peak_loss"].copy_(torch.where(higher, loss, state["peak_loss"]))
        torch.where(_rows(higher, x), x, state["peak"], out=state["peak"])
        torch.where(_rows(higher, x), gradient, state["slope"], out=state["slope"])
        return loss, gradient

    def ask(self, oracle: Oracle, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, losses and gradients: the means over `eot` passes."""
        where = (state["x"], self.loss, state["y"], state["target"])
        means = oracle.gradient(*where)
        for number in range(2, self.attack.eot + 1):
            for mean, new in zip(means, oracle.gradient(*where), strict=True):
                mean.lerp_(new, 1 / number)
        return means

    def keep(self, state: State, loss: Tensor, fooled: Tensor) -> None:
        """The engine's part: the point to return."""
        worth = loss.masked_fill(fooled, _INF)
        better = worth > state["best_loss"]
        state["fooled"].copy_(fooled)
        state["best_loss"].copy_(torch.where(better, worth, state["best_loss"]))
        torch.where(_rows(better, state["x"]), state["x"], state["best"], out=state["best"])

    def check(self, state: State, gradient: Tensor, rows: Tensor, period: Tensor) -> None:
        """Halve the step of those that rose too seldom or have stalled, and take them back to their peaks."""
        seldom = state["rises"][rows] <= self.attack.rho * period
        stalled = ~state["halved"][rows] & (state["peak_before"][rows] >= state["peak_loss"][rows])
        halved = seldom | stalled
        state["halved"][rows] = halved
        state["peak_before"][rows] = state["peak_loss"][rows]
        state["rises"][rows] = 0
        back = rows[halved]
        state["length"][back] /= 2
        state["x"][back] = state["peak"][back]
        gradient[back] = state["slope"][back]

    def move(self, state: State, gradient: Tensor) -> None:
        """Step up the gradient, with some of the previous movement."""
        x, x0, previous, a = state["x"], state["x0"], state["previous"], self.attack
        target = steepest(gradient, a.norm).mul_(_rows(state["length"], x)).add_(x)
        project(target, x0, a.eps, a.norm)
        weight = torch.where(state["step"] == 0, 1.0, _MOMENTUM)
        onward = torch.sub(x, previous, out=previous).add_(x)  # where the previous movement alone would lead
        torch.lerp(onward, target, _rows(weight, x), out=target)
        previous.copy_(x)
        x.copy_(project(target, x0, a.eps, a.norm))

    def unqueried(self, state: State) -> Tensor:
        """The point after the last step."""
        return state["x"]


class SparseClimb(Climb):
    """The loop of APGD for l_1: sparse steps, three balls one in the other, no momentum.

    Between two balls lies one query more than there are steps: the best point, brought into the smaller ball, is where
    its search starts. The state has ``share`` (of the pixels that move) and ``spread``, the share of the pixels that
    the best perturbation changed at the last checkpoint.
    """

    def __init__(self, attack: APGD, aim: Aim, seed: int):
        phases = attack.phases()
        super().__init__(attack, aim, seed, steps=attack.steps + len(phases) - 1)
        radius: dict[int, float] = {}  # of the ball that the point after each query lies in
        checks: dict[int, float] = {}
        turns: dict[int, float] = {}
        query = 0
        for number, (eps, steps) in enumerate(phases):
            final = number == len(phases) - 1
            radius |= dict.fromkeys(range(query, query + steps), eps)
            every = max(int(0.04 * steps), 1)
            checks |= dict.fromkeys(range(query + every, query + steps, every), 1)
            query += steps
            if not final:
                radius[query], turns[query] = phases[number + 1][0], 1
                query += 1
        self.radius = _table(radius, self.steps)
        self.checks, self.turns = _table(checks, self.steps).bool(), _table(turns, self.steps).bool()
        self.last_turn = max(turns, default=-1)

    def begin(self, fresh: State) -> None:
        """Start at a normal random point, projected; it is sparse."""
        x0 = fresh["x0"]
        offset = normals(uniform_at(self.seed, fresh["key"], x0[0].numel()))
        self.radius, self.checks, self.turns = (t.to(x0.device) for t in (self.radius, self.checks, self.turns))
        eps = self.attack.phases()[0][0]
        x = project(x0 + offset.view(x0.shape), x0, eps, "l1")
        self.prepare(fresh, x, eps)
        fresh["spread"] = _changed(x, x0)
        fresh["share"] = fresh["spread"] / 1.5
        if self.last_turn < 0:  # a single ball starts as in the paper's algorithm 2
            fresh["spread"], fresh["share"] = torch.ones_like(fresh["spread"]), torch.full_like(fresh["share"], 0.2)

    def step(self, oracle: Oracle, state: State) -> None:
        """Query, keep what is higher, adapt the sparsity or turn to the next ball; then move."""
        _, gradient = self.query(oracle, state)
        eps = self.radius[state["step"]]
        for due, act in ((self.checks, self.adapt), (self.turns, self.turn)):
            rows = due[state["step"]].nonzero().squeeze(1)
            if len(rows):
                act(state, gradient, rows, eps[rows])
        x = state["x"]
        pace = torch.where(self.turns[state["step"]], 0, state["length"])  # who just turned stays for a query
        x.add_(steepest(gradient, "l1", state["share"]).mul_(_rows(pace, x)))
        project(x, state["x0"], eps, "l1")

    def keep(self, state: State, loss: Tensor, fooled: Tensor) -> None:
        """The engine's part; what lies in a larger ball is no result."""
        outside = state["step"] <= self.last_turn
        super().keep(state, loss.masked_fill(outside, -_INF), fooled & ~outside)

    def adapt(self, state: State, gradient: Tensor, rows: Tensor, eps: Tensor) -> None:
        """Move as many pixels as the best perturbation needs; long steps while it grows sparser, else shorter ones."""
        spread = _changed(state["peak"][rows], state["x0"][rows])
        sparser = spread < 0.95 * state["spread"][rows]
        state["share"][rows] = spread / 1.5
        state["spread"][rows] = spread
        shorter = torch.maximum(state["length"][rows] / 1.5, eps / 10)
        state["length"][rows] = torch.where(sparser, eps, torch.minimum(shorter, eps))
        back = rows[sparser]
        state["x"][back] = state["peak"][back]
        gradient[back] = state["slope"][back]

    def turn(self, state: State, gradient: Tensor, rows: Tensor, eps: Tensor) -> None:
        """Take the best point into the next ball, and start anew from there."""
        x0 = state["x0"][rows]
        x = project(state["peak"][rows], x0, eps, "l1")
        spread = _changed(x, x0)
        state["x"][rows] = state["peak"][rows] = x
        state["peak_loss"][rows] = -_INF
        state["length"][rows] = eps
        state["spread"][rows] = spread
        state["share"][rows] = spread / 1.5


def _table(entries: Mapping[int, float], steps: int) -> Tensor:
    """One entry per step, 0 where there is none."""
    return torch.tensor([float(entries.get(step, 0)) for step in range(steps)])


def _changed(x: Tensor, x0: Tensor) -> Tensor:
    """The share of the pixels that differ, for each sample."""
    return (x != x0).flatten(1).float().mean(1)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
