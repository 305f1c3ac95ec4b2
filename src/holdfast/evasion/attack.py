"""What attacks share, from the user's call to the outcome: `Evasion`, and `BallAttack` for those within a ball.

Attacks that look for the smallest perturbation instead are in `holdfast.evasion.minimal`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.evasion.balls import Norm, distance
from holdfast.evasion.loop import Drive, Search
from holdfast.evasion.losses import Aim, reached
from holdfast.evasion.oracle import Oracle, consult, demand_gradients
from holdfast.evasion.outcome import Outcome, check_inputs, check_labels
from holdfast.evasion.pool import Ledger, State
from holdfast.methods import Attack
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, content_keys

__all__ = ["BallAttack", "Evasion"]

_ROUND = 0x632BE59BD9B4E019  # odd, 63 bits: keeps the random numbers of a sample's rounds apart


class Evasion(Attack):
    """An attack on one model that reports an `Outcome`."""

    #: What happens to an image depends on the others of the call, as where one pattern serves them all; such an attack
    #: gets a whole split at once. Of all others the result for an image is its own.
    joint: ClassVar[bool] = False

    @abstractmethod
    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack, and say how it went.

        Args:
            model: from images to logits; in any mode, left as it was.
            x: float32 or float64 in [0, 1], shape (N, C, H, W), on any device.
            y: int64 (N,), the true labels.
            run: device, precision of gradients, seed, the most images per pass, progress.
            target: int64 (N,), the classes to be predicted instead; by default any wrong class will do.

        Raises:
            UserError: the images, labels or targets are not as said, or the model cannot be attacked.
        """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Tensor:
        """Attack `x` (float in [0, 1], shape (N, C, H, W)) with labels `y` (int64, (N,)); returns `x_adv` like `x`.

        `target` and errors as in `run`.
        """
        return self.run(model, x, y, run=run, target=target).x_adv


class BallAttack(Evasion):
    """An attack bound to a ball of radius `eps` in `norm`. Subclasses say what a search does; see `Search`."""

    eps: float
    norm: Norm

    @abstractmethod
    def search(self, aim: Aim, seed: int) -> Search:
        """The search for one call: towards `aim`, with random numbers of the stream `seed`."""

    @property
    def tries(self) -> int:
        """Independent attempts at each sample."""
        return 1

    @property
    def ranks(self) -> int:
        """How many of the likeliest wrong classes to aim at, one after the other; 0 aims at any error."""
        return 0

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack within the ball; see `Evasion.run`."""
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "given" if target is not None else "ranks" if self.ranks else "any"
        search = self.search(aim, run.seed_for(self.id))
        if search.gradients:
            demand_gradients(self.id, model)
        with consult(model, x[:8], run, self.id) as oracle:
            clean = oracle.verdicts(x)
            check_labels(self.id, clean.shape[1], y, None if target is None else goal)
            correct = clean.argmax(1) == y
            open_ = ~reached(aim, clean, y, goal)
            ranks = min(self.ranks, clean.shape[1] - 1) if aim == "ranks" else 0
            ledger = Ledger(x, clean, self.tries * max(ranks, 1))
            samples = np.flatnonzero(open_.cpu().numpy())
            drive = Drive(
                search,
                oracle,
                ledger,
                samples,
                capacity=max(1, min(oracle.limit, len(samples) * ledger.rounds)),
                start=_Starter(oracle, x, y, goal, _ranked(clean, y, ranks)),
            )
            with run.track(len(samples) * ledger.rounds * search.steps, self.id) as ticker:
                drive.run(ticker)
        passes = torch.from_numpy(ledger.queries).to(x.device)
        return Outcome(
            x_adv=ledger.x_adv,
            success=reached(aim, ledger.logits, y, goal),
            correct=correct,
            queries=passes * search.queries,
            gradients=passes * search.gradients,
            distance=distance(ledger.x_adv, x, self.norm),
            logits=ledger.logits,
            clean_logits=clean,
            norm=self.norm,
            eps=self.eps,
        )


class _Starter:
    """Makes the engine's part of the state of new items."""

    def __init__(self, oracle: Oracle, x: Tensor, y: Tensor, goal: Tensor, ranked: Tensor):
        self.oracle, self.x, self.y, self.goal, self.ranked = oracle, x, y, goal, ranked

    def __call__(self, sample: np.ndarray, round: np.ndarray) -> State:
        device = self.oracle.device
        index, rounds = torch.from_numpy(sample).to(self.x.device), torch.from_numpy(round).to(device)
        x0 = fast_layout(self.x[index].float(), device)
        target = self.goal[index].to(device)
        if self.ranked.shape[1]:
            target = self.ranked[index].to(device).gather(1, (rounds % self.ranked.shape[1])[:, None]).squeeze(1)
        return {
            "x0": x0,
            "y": self.y[index].to(device),
            "target": target,
            "key": content_keys(x0) + rounds * _ROUND,
            "step": torch.zeros_like(rounds),
            "best": x0.clone(),
            "best_loss": torch.full((len(x0),), -float("inf"), device=device),
            "fooled": torch.zeros(len(x0), dtype=torch.bool, device=device),
        }


def _ranked(logits: Tensor, y: Tensor, ranks: int) -> Tensor:
    """The likeliest wrong classes, shape (N, ranks)."""
    return logits.scatter(1, y[:, None], -float("inf")).topk(ranks, dim=1).indices
