"""Output noise: add fresh noise to the logits, so that an attacker cannot tell small changes of the score from chance.

A baseline of Chen et al., "Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query
Attacks", NeurIPS 2022, arXiv:2205.12134, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.guard import Guarded
from holdfast.methods import Paper, Surgery

__all__ = ["GuardedByOutputNoise", "OutNoise"]


@dataclass(frozen=True, kw_only=True)
class OutNoise(
    Surgery,
    id="out-noise",
    title="Output noise",
    paper=Paper(
        title="Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks",
        arxiv="2205.12134",
        venue="NeurIPS",
        year=2022,
    ),
):
    """A guard that adds Gaussian noise to every logit.

    A baseline for guards. Labels near a boundary change from call to call; gradients are untouched.

    Args:
        sigma: standard deviation of the noise, in logits; 1 is the custom for undefended networks, 0.3 for robust ones.
    """

    sigma: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, model: nn.Module) -> GuardedByOutputNoise:
        """The guarded copy of the model."""
        return GuardedByOutputNoise(model, self)


class GuardedByOutputNoise(Guarded):
    """A model whose logits are noisy, with noise drawn anew in every pass from PyTorch's global generator."""

    guard: OutNoise

    def forward(self, x: Tensor) -> Tensor:
        """Noisy logits."""
        logits = self.model(x)
        return logits + self.guard.sigma * torch.randn_like(logits) if self.guard.sigma else logits
