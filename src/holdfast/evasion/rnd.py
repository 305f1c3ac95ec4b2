"""RND: answer for the image plus fresh noise, so that an attacker cannot tell small changes of the score from chance.

Qin et al., "Random Noise Defense Against Query-Based Black-Box Attacks", NeurIPS 2021, arXiv:2104.11470, eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.adaptive import Expectation
from holdfast.evasion.guard import Guarded
from holdfast.methods import Paper, Surgery

__all__ = ["RND", "GuardedByNoise"]


@dataclass(frozen=True, kw_only=True)
class RND(
    Surgery,
    id="rnd",
    title="Random noise defence",
    paper=Paper(
        title="Random Noise Defense Against Query-Based Black-Box Attacks",
        arxiv="2104.11470",
        venue="NeurIPS",
        year=2021,
    ),
):
    """A guard that adds Gaussian noise to every image it is asked about.

    A baseline for guards: it costs clean accuracy, its labels change from call to call, and an attacker who asks
    several times averages the noise away. Judge it on the average over many draws.

    Args:
        sigma: standard deviation of the noise, in pixel units of [0, 1]; 0.02 is the custom for undefended networks,
            0.05 for robust ones.
    """

    sigma: Annotated[float, Field(ge=0, le=1)] = 0.02

    def __call__(self, model: nn.Module) -> GuardedByNoise:
        """The guarded copy of the model."""
        return GuardedByNoise(model, self)


class GuardedByNoise(Guarded):
    """A model that sees its images through noise, drawn anew in every pass from PyTorch's global generator."""

    guard: RND

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the noisy images."""
        if not self.guard.sigma:
            return self.model(x)
        return self.model((x + self.guard.sigma * torch.randn_like(x)).clamp(0, 1))

    def adaptive(self) -> Expectation:
        """The average over 20 draws."""
        return Expectation(self, draws=20)
