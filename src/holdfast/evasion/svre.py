"""SVRE: attack an ensemble by short inner climbs whose gradients, of one member each, are freed of that member's bias.

At each step the gradient of the whole ensemble is taken once. From there an inner climb follows one random member at a
time: its gradient, minus how it differed from the ensemble's at the start. What the inner climb has gathered is the
gradient of the step.

Xiong et al., "Stochastic Variance Reduced Ensemble Adversarial Attack for Boosting the Adversarial Transferability",
CVPR 2022, arXiv:2111.10752, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.balls import project
from holdfast.evasion.ensemble import Ensemble
from holdfast.evasion.momentum import Scene, StepwiseAttack, normalised
from holdfast.evasion.oracle import Oracle, are_probabilities
from holdfast.methods import Paper
from holdfast.models import fast_twin
from holdfast.run import Ticker

__all__ = ["SVRE"]


@dataclass(frozen=True, kw_only=True)
class SVRE(
    StepwiseAttack,
    id="svre",
    paper=Paper(
        title="Stochastic Variance Reduced Ensemble Adversarial Attack for Boosting the Adversarial Transferability",
        arxiv="2111.10752",
        venue="CVPR",
        year=2022,
    ),
):
    """Stochastic variance reduced ensemble attack.

    For a surrogate that is a `holdfast.evasion.Ensemble`; of any other model the inner climb follows the model itself.
    For K members each step costs one gradient of the ensemble and, for each of 4 K inner steps, two of one member.

    Args:
        inner: inner steps per step, for each member of the ensemble.
    """

    inner: Annotated[int, Field(ge=1)] = 4

    def climb(self, scene: Scene, ticker: Ticker) -> Float[Tensor, "n c h w"]:
        """The algorithm: an outer climb with momentum, whose gradients are gathered by inner ones."""
        x, memory = scene.x0.clone(), torch.zeros_like(scene.x0)
        # Which member comes when is the same for all images, hence known without looking at them.
        order = torch.Generator().manual_seed(scene.seed)
        for _ in range(self.steps):
            memory = self.momentum * memory + normalised(self._gathered(scene, x, order))
            x = self._stepped(scene, x, memory)
            ticker.advance(len(x))
        return x

    def _gathered(self, scene: Scene, x: Float[Tensor, "n c h w"], order: torch.Generator) -> Tensor:
        whole = _gradient(scene, scene.oracle, x)
        at, memory = x, torch.zeros_like(x)
        for _ in range(self.inner * len(scene.members)):
            member = scene.members[int(torch.randint(len(scene.members), (), generator=order))]
            reduced = _gradient(scene, member, at) - (_gradient(scene, member, x) - whole)
            memory = self.momentum * memory + normalised(reduced)
            at = self._stepped(scene, at, memory)
        return memory

    def _stepped(self, scene: Scene, x: Tensor, direction: Tensor) -> Tensor:
        return project(x + self.step_length * direction.sign(), scene.x0, self.eps, "linf")

    def members(self, oracle: Oracle, example: Float[Tensor, "n c h w"]) -> Sequence[Oracle]:
        """The members of an ensemble, or the model itself."""
        return [_lent(member, oracle, example) for member in _members(oracle.judge)] or [oracle]

    def gradients(self, model: nn.Module) -> int:
        """One of the ensemble and two for each inner step, in each step."""
        return self.steps * (1 + 2 * self.inner * max(1, len(_members(model))))


def _members(model: nn.Module) -> list[nn.Module]:
    return list(model.members) if isinstance(model, Ensemble) else []


def _lent(member: nn.Module, oracle: Oracle, example: Tensor) -> Oracle:
    lent = Oracle(member, fast_twin(member, example), oracle.run, oracle.limit)
    lent.probabilities = are_probabilities(lent.verdict(example))
    return lent


def _gradient(scene: Scene, oracle: Oracle, x: Tensor) -> Tensor:
    loss = scene.loss if oracle is scene.oracle else scene.member_loss
    _, _, gradient = oracle.gradient(x, loss, scene.y, scene.target)
    return torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
