"""Attacks that look for the smallest perturbation: what they share, from the user's call to the outcome.

They have no ball to fill. A method gets a `Task`: samples that are classified rightly, and the book in which it notes
adversarial points; the nearest one of each sample counts. Such points lie on the boundary, where the fast twin and the
user's model may disagree by rounding, so a point that the user's model denies is moved outwards a little.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import SLACK, Norm, distance, project
from holdfast.evasion.losses import Aim, reached
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import Outcome, check_inputs, check_labels
from holdfast.evasion.pool import Items, Pool, State
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, Ticker, content_keys

__all__ = ["MinimalAttack", "Task"]

_OUTWARDS = (1.001, 1.003, 1.01, 1.03)  # of the perturbation, tried in turn where the user's model denies a success


@dataclass(eq=False, kw_only=True)
class Task:
    """Some samples to be led over the boundary, all classified rightly, and the nearest points found so far.

    Args:
        oracle: the model.
        x0: the images, float32 (N, C, H, W), on the oracle's device and in its layout.
        y: their labels, int64 (N,).
        target: the classes to be predicted instead; equal to `y` where any error will do.
        aim: ``"any"`` or ``"given"``.
        norm: in which nearness is measured.
        eps: a sample may be left alone once a point within this distance is known; infinite if the smallest is wanted.
        seed: of the stream of random numbers; use it with `key` and `holdfast.run.uniform_at`.
        key: int64 (N,), each sample's own.
        ticker: advance it by the samples times the share of the work done: N in all.
        best: the nearest adversarial point so far; `x0` where there is none.
        best_distance: its distance, infinite where there is none.
        queries, gradients: int64 (N,), spent so far; to be counted by the method.
    """

    oracle: Oracle
    x0: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"]
    aim: Aim
    norm: Norm
    eps: float
    seed: int
    key: Int64[Tensor, " n"]
    ticker: Ticker
    best: Tensor
    best_distance: Tensor
    queries: Tensor
    gradients: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def open(self) -> Bool[Tensor, " n"]:
        """The samples of which no point near enough is known; all of them if the smallest perturbation is wanted."""
        if math.isinf(self.eps):
            return torch.ones_like(self.best_distance, dtype=torch.bool)
        return self.best_distance > self.eps + SLACK[self.norm]

    def fooled(self, logits: Float[Tensor, "m k"], rows: Tensor | None = None) -> Bool[Tensor, " m"]:
        """Whether the logits reach the aim; `rows` says of which samples they are, by default of all."""
        y, target = (self.y, self.target) if rows is None else (self.y[rows], self.target[rows])
        return reached(self.aim, logits, y, target)

    def offer(
        self, points: Float[Tensor, "m c h w"], fooled: Bool[Tensor, " m"], rows: Int64[Tensor, " m"] | None = None
    ) -> Bool[Tensor, " m"]:
        """Note points that may be adversarial; says which of them are the nearest of their sample so far.

        Args:
            points: images in [0, 1].
            fooled: whether they are adversarial.
            rows: of which samples they are, each at most once; by default of all.
        """
        rows = torch.arange(len(self), device=self.y.device) if rows is None else rows
        far = distance(points, self.x0[rows], self.norm)
        nearer = fooled & (far < self.best_distance[rows])
        chosen = rows[nearer]
        self.best[chosen] = points[nearer]
        self.best_distance[chosen] = far[nearer]
        return nearer

    def sweep(self, begin: Callable[[Tensor], State], step: Callable[[State], Bool[Tensor, " m"]]) -> None:
        """Work on all samples, as many at a time as a pass takes; whoever is done makes room for the next.

        Args:
            begin: the state of samples that start, given their positions in the task.
            step: moves the samples at hand on and says which are done. Their state holds ``row``, their positions, and
                what `begin` made; the tensors are to be written into.
        """
        pool, waiting = Pool(max(1, min(self.oracle.limit, len(self)))), np.arange(len(self))
        while True:
            fresh, waiting = waiting[: pool.room], waiting[pool.room :]
            if len(fresh):
                rows = torch.from_numpy(fresh).to(self.y.device)
                pool.put(Items({"row": rows, **begin(rows)}, fresh, np.zeros_like(fresh)))
            if not pool.count:
                return
            done = np.flatnonzero(step(pool.items.state).cpu().numpy())
            if len(done):
                pool.take(done)


class MinimalAttack(Evasion):
    """An attack that minimises the perturbation's norm. Subclasses say how; see `descend`.

    With `eps`, an attack may leave a sample alone once it has a point within that distance, and only such points
    count as success; what lies farther is pulled back onto the ball.
    """

    eps: float | None
    norm: Norm

    #: A task holds as many samples as this many passes take; more than one for attacks whose samples end unevenly and
    #: make room for others (`Task.sweep`).
    passes: ClassVar[int] = 1

    @abstractmethod
    def descend(self, task: Task) -> None:
        """Look for the nearest adversarial points of the task's samples, and `Task.offer` them."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack, and say how it went; see `Evasion.run`.

        The outcome's images are the nearest adversarial ones that the user's own model confirms in float32; where none
        was found, the given images.
        """
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "any" if target is None else "given"
        with consult(model, x[:8], run, self.id) as oracle:
            clean = oracle.verdicts(x)
            check_labels(self.id, clean.shape[1], y, None if target is None else goal)
            correct = clean.argmax(1) == y
            open_ = (~reached(aim, clean, y, goal)).nonzero().squeeze(1)
            x_adv, logits = x.clone(), clean.clone()
            queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            gradients = queries.clone()
            with run.track(len(open_), self.id) as ticker:
                for rows in open_.split(self.passes * oracle.limit) if len(open_) else ():
                    task = self._task(oracle, x[rows], y[rows], goal[rows], aim, run.seed_for(self.id), ticker)
                    self.descend(task)
                    points, seen = _confirmed(task)
                    x_adv[rows], logits[rows] = points.to(x_adv), seen.to(logits)
                    queries[rows], gradients[rows] = task.queries.to(x.device), task.gradients.to(x.device)
        return Outcome(
            x_adv=x_adv,
            success=reached(aim, logits, y, goal),
            correct=correct,
            queries=queries,
            gradients=gradients,
            distance=distance(x_adv, x, self.norm),
            logits=logits,
            clean_logits=clean,
            norm=self.norm,
            eps=self.reach,
        )

    @property
    def reach(self) -> float:
        """`eps`, or infinity."""
        return math.inf if self.eps is None else self.eps

    def _task(self, oracle: Oracle, x: Tensor, y: Tensor, target: Tensor, aim: Aim, seed: int, ticker: Ticker) -> Task:
        device = oracle.device
        x0 = fast_layout(x.float(), device)
        none = torch.zeros(len(x), dtype=torch.int64, device=device)
        return Task(
            oracle=oracle,
            x0=x0,
            y=y.to(device),
            target=target.to(device),
            aim=aim,
            norm=self.norm,
            eps=self.reach,
            seed=seed,
            key=content_keys(x0),
            ticker=ticker,
            best=x0.clone(),
            best_distance=torch.full((len(x),), math.inf, device=device),
            queries=none,
            gradients=none.clone(),
        )


def _confirmed(task: Task) -> tuple[Tensor, Tensor]:
    """The points of a finished task as the user's model sees them, and its logits there."""
    bounded = math.isfinite(task.eps)
    points, found = task.best.clone(), task.best_distance.isfinite()
    far = (found & task.open).nonzero().squeeze(1)
    if bounded and len(far):
        points[far] = project(points[far], task.x0[far], task.eps, task.norm)
    logits = task.oracle.verdict(points)
    for factor in _OUTWARDS:
        rows = (found & ~task.fooled(logits)).nonzero().squeeze(1)
        if not len(rows):
            return points, logits
        x0 = task.x0[rows]
        moved = (x0 + factor * (task.best[rows] - x0)).clamp_(0, 1)
        if bounded:
            moved = project(moved, x0, task.eps, task.norm)
        seen = task.oracle.verdict(moved)
        hit = task.fooled(seen, rows)
        points[rows[hit]], logits[rows[hit]] = moved[hit], seen[hit]
    lost = (found & ~task.fooled(logits)).nonzero().squeeze(1)
    if len(lost) and not bounded:  # with a radius, the point on the ball is returned as the nearest to success
        points[lost] = task.x0[lost]
        logits[lost] = task.oracle.verdict(points[lost])
    return points, logits
