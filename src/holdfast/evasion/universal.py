"""One perturbation for all images: what universal attacks share, from fitting a pattern to the outcome.

A method gets a `Crowd`, the images with the predictions to be changed, and improves one pattern in passes over it; the
base keeps the pattern of the pass that fooled most. Everything random belongs to the whole crowd, and the order in
which images are visited is drawn from their contents, so a pattern depends on which images there are but neither on
how they were ordered nor on how many fit into a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import Norm, distance
from holdfast.evasion.losses import Aim, Loss, loss_for, reached
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import Outcome, check_inputs, check_labels
from holdfast.evasion.pattern import Pattern
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, Ticker, content_keys, uniform_at

__all__ = ["Crowd", "UniversalAttack", "adam", "onto_ball"]

#: Rows of the crowd and the pattern -> what is to be maximised, and its gradient with respect to the pattern.
Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(eq=False, kw_only=True)
class Crowd:
    """The images one pattern is fitted to, as a model sees them.

    Args:
        oracle: the model.
        x: images (N, C, H, W), bytes or floats in [0, 1], anywhere.
        eps, norm: the ball the pattern must stay in.
        run: for random numbers, named after the method.
        target: int64 (N,), the classes to be predicted; by default any change of prediction will do.
        ticker: advanced by the images visited.
        predicted: int64 (N,), the classes predicted on the images as they are.
        classes: how many there are.
        queries, gradients: int64 (N,), spent on each.
    """

    oracle: Oracle
    x: Tensor
    eps: float
    norm: Norm
    run: Run
    target: Int64[Tensor, " n"] | None = None
    ticker: Ticker = field(default_factory=Ticker)
    predicted: Int64[Tensor, " n"] = field(init=False)
    classes: int = field(init=False)
    queries: Int64[Tensor, " n"] = field(init=False)
    gradients: Int64[Tensor, " n"] = field(init=False)

    def __post_init__(self) -> None:
        predicted, keys = [], []
        for rows in torch.arange(len(self), device=self.x.device).split(self.oracle.limit):
            x = self.at(rows)
            logits = self.oracle.verdict(x)
            predicted.append(logits.argmax(1).to(self.x.device))
            keys.append(content_keys(x).to(self.x.device))
        self.predicted, self._keys, self.classes = torch.cat(predicted), torch.cat(keys), logits.shape[1]
        self.queries = torch.zeros(len(self), dtype=torch.int64, device=self.x.device)
        self.gradients = self.queries.clone()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def aim(self) -> Aim:
        """``"given"`` where there are targets, else ``"any"``."""
        return "any" if self.target is None else "given"

    def at(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m c h w"]:
        """Some of the images, float32 in [0, 1], on the oracle's device."""
        return fast_layout(to_float(self.x[rows]), self.oracle.device)

    def zeros(self) -> Float[Tensor, "c h w"]:
        """A pattern that changes nothing."""
        return torch.zeros(self.x.shape[1:], device=self.oracle.device)

    def order(self, epoch: int) -> Int64[Tensor, " n"]:
        """All rows, in an order drawn anew for each pass from the images' contents."""
        draws = uniform_at(self.run.seed_for("order"), self._keys, 2, offset=2 * epoch).double()
        return (draws[:, 0] + draws[:, 1] * 2.0**-24).argsort(stable=True)

    def batches(self, epoch: int, size: int) -> tuple[Int64[Tensor, " m"], ...]:
        """The rows of one pass in batches of `size`, or of less: few images still make ten steps."""
        return self.order(epoch).split(min(size, max(1, len(self) // 10)))

    def goals(self, rows: Int64[Tensor, " m"]) -> tuple[Tensor, Tensor]:
        """The predicted and the wanted class of some images; equal where any change will do."""
        y = self.predicted[rows].to(self.oracle.device)
        return y, y if self.target is None else self.target[rows].to(self.oracle.device)

    def slope(
        self,
        rows: Int64[Tensor, " m"],
        points: Float[Tensor, "m c h w"],
        loss: Loss,
        reference: Tensor | None = None,
        oracle: Oracle | None = None,
    ) -> tuple[Tensor, Float[Tensor, "c h w"]]:
        """The mean loss of some images at given points, and its gradient with respect to what all are moved by.

        Args:
            rows: which images.
            points: where they have been moved to.
            loss: gets the output, the predicted class, and the target or the reference; to be maximised.
            reference: one row per image, handed to `loss` in the place of the target.
            oracle: another view of the model.
        """
        y, target = self.goals(rows)
        target = target if reference is None else reference
        _, losses, gradient = (oracle or self.oracle).gradient(points, loss, y, target)
        self.queries[rows] += 1
        self.gradients[rows] += 1
        return losses.mean(), gradient.mean(0)

    def fooled(
        self, v: Float[Tensor, "c h w"], rows: Int64[Tensor, " m"] | None = None, *, clip: bool = True
    ) -> Tensor:
        """Whether each image (by default all), moved by `v`, is predicted as wanted: bool (M,), beside the images."""
        rows = torch.arange(len(self), device=self.x.device) if rows is None else rows
        found = []
        for part in rows.split(self.oracle.limit):
            points = self.at(part) + v
            logits = self.oracle.logits(points.clamp_(0, 1) if clip else points)
            found.append(reached(self.aim, logits, *self.goals(part)).to(self.x.device))
        self.queries[rows] += 1
        return torch.cat(found)


class UniversalAttack(Evasion):
    """An attack that adds one pattern to every image. Subclasses say how the pattern is found; see `passes`.

    `fit` finds a pattern for use on other images and reads no labels. As an attack (`run`), it fits the pattern to the
    very images it attacks, those that are predicted rightly, and adds it to them.
    """

    joint: ClassVar[bool] = True

    eps: float
    norm: Literal["linf", "l2"]
    epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf" and self.eps > 1:
            hint = f" Did you mean {self.eps:g}/255?" if self.eps <= 255 else ""
            raise UserError(f"{self.id}: eps must be a number in [0, 1] for norm 'linf', got {self.eps:g}.{hint}")

    @abstractmethod
    def passes(self, crowd: Crowd) -> Iterator[tuple[Float[Tensor, "c h w"], float]]:
        """Improve a pattern, pass by pass over the crowd, at most `epochs` times.

        Yields:
            The pattern after each pass, in the ball, and what the method maximises, on average over the pass.
        """

    @property
    def enough(self) -> float:
        """The fooling rate at which fitting ends early."""
        return 1.0

    def fit(
        self, model: nn.Module, images: Images, *, run: Run, target: int | None = None, val: Images | None = None
    ) -> Pattern:
        """Find a pattern that changes as many of the model's predictions as it can.

        Args:
            model: in any mode, left as it was.
            images: to fit to; their labels are not read.
            run: device, seed, most images per pass. Results do not depend on the last, nor on the images' order.
            target: the class to lead all images to; by default any change will do.
            val: where the best pass is chosen; by default on `images`.

        Raises:
            UserError: there are no images, the target is no class, or the model cannot be attacked.
        """
        if not len(images) or (val is not None and not len(val)):
            raise UserError(f"{self.id}: there are no images to fit a pattern to.")
        with consult(model, next(images.batches(8))[0], run) as oracle, self._track(len(images), run) as ticker:
            crowds = []
            for split, clock in ((images, ticker), (val, Ticker())):
                if split is not None:
                    crowds.append(self._crowd(oracle, split.x, run, target=None, ticker=clock))
            if target is not None:
                if not 0 <= target < crowds[0].classes:
                    raise UserError(f"{self.id}: target must lie in 0..{crowds[0].classes - 1}, got {target}.")
                for crowd in crowds:
                    crowd.target = torch.full_like(crowd.predicted, target)
            return self._fit(crowds[0], crowds[-1])

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack, and say how it went; see `Evasion.run`."""
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "any" if target is None else "given"
        with consult(model, x[:8], run) as oracle:
            clean = oracle.verdicts(x)
            check_labels(self.id, clean.shape[1], y, None if target is None else goal)
            rows = (~reached(aim, clean, y, goal)).nonzero().squeeze(1)
            x_adv, logits = x.clone(), clean.clone()
            queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            gradients = queries.clone()
            if len(rows):
                with self._track(len(rows), run) as ticker:
                    crowd = self._crowd(oracle, x[rows], run, None if target is None else goal[rows], ticker)
                    x_adv[rows] = self._fit(crowd, crowd).add_to(x[rows])
                logits[rows] = oracle.verdicts(x_adv[rows])
                queries[rows], gradients[rows] = crowd.queries, crowd.gradients
        return Outcome(
            x_adv=x_adv,
            success=reached(aim, logits, y, goal),
            correct=clean.argmax(1) == y,
            queries=queries,
            gradients=gradients,
            distance=distance(x_adv, x, self.norm),
            logits=logits,
            clean_logits=clean,
            norm=self.norm,
            eps=self.eps,
        )

    def _track(self, count: int, run: Run) -> AbstractContextManager[Ticker]:
        return run.track(count * self.epochs, self.id)

    def _crowd(self, oracle: Oracle, x: Tensor, run: Run, target: Tensor | None, ticker: Ticker) -> Crowd:
        return Crowd(
            oracle=oracle,
            x=x,
            eps=self.eps,
            norm=self.norm,
            run=run.child(self.id),
            target=target,
            ticker=ticker,
        )

    def _fit(self, crowd: Crowd, judges: Crowd) -> Pattern:
        """The pattern of the pass that fools most of `judges`; of equal ones, that of the highest gain."""
        best, most = crowd.zeros(), (-1.0, 0.0)
        gains, rates = [], []
        for v, gain in self.passes(crowd) if self.eps else ():
            rate = float(judges.fooled(v).double().mean())
            gains.append(gain)
            rates.append(rate)
            if (rate, gain) > most:
                best, most = v.clone(), (rate, gain)
            crowd.ticker.advance(0, f"fooled {rate:.1%}")
            if rate >= self.enough:
                break
        return Pattern(
            v=best.cpu(),
            eps=self.eps,
            norm=self.norm,
            attack=str(self),
            curves={"gain": tuple(gains), "fooling_rate": tuple(rates)},
        )


def onto_ball(v: Float[Tensor, "c h w"], eps: float, norm: Norm) -> Float[Tensor, "c h w"]:
    """The nearest pattern of norm at most `eps`."""
    if norm == "linf":
        return v.clamp(-eps, eps)
    return v * min(1.0, eps / max(float(torch.linalg.vector_norm(v)), 1e-12))


def adam(
    crowd: Crowd,
    v: Float[Tensor, "c h w"],
    slope: Slope,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    target_weight: float,
) -> Iterator[tuple[Tensor, float]]:
    """Passes of Adam over a crowd, back onto the ball after each step; where there are targets, towards them as well.

    Args:
        crowd: the images.
        v: where to start; overwritten.
        slope: the gradient to climb.
        epochs, batch_size: how long, in steps of how many images.
        lr, weight_decay: of Adam.
        target_weight: of the targets' log-probability, where there are targets.
    """
    optimizer = torch.optim.Adam([v], lr=lr, weight_decay=weight_decay)
    for epoch in range(epochs):
        total = 0.0
        for rows in crowd.batches(epoch, batch_size):
            gain, gradient = slope(rows, v)
            if crowd.aim == "given":
                _, towards = crowd.slope(rows, crowd.at(rows) + v, loss_for("given", "ce"))
                gradient = gradient + target_weight * towards
            v.grad = -gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).contiguous()
            optimizer.step()
            v.copy_(onto_ball(v, crowd.eps, crowd.norm))
            total += float(gain) * len(rows)
            crowd.ticker.advance(len(rows))
        yield v, total / len(crowd)
