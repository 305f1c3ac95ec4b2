"""SAM: step by the gradient taken where, within a small radius, the loss is about worst.

Weights in a flat valley generalise better than those in a sharp one. Before each step the weights climb to
``w + rho * g / ||g||``; the gradient found there is applied at ``w``. Costs two gradients per step.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, arXiv:2010.01412.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from holdfast.methods import OptimizerWrapper, Paper

__all__ = ["SAM", "SharpnessAware"]


@dataclass(frozen=True, kw_only=True)
class SAM(
    OptimizerWrapper,
    id="sam",
    title="Sharpness-aware minimisation",
    paper=Paper(
        title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
        arxiv="2010.01412",
        venue="ICLR",
        year=2021,
    ),
):
    """Any optimizer, stepping by the gradient at the worst point nearby.

    Args:
        rho: the radius, in the l_2 norm over all weights; 0.05 on CIFAR-10, 0.1 to 0.2 on CIFAR-100. 0 is the plain
            optimizer.
    """

    rho: Annotated[float, Field(ge=0)] = 0.05

    def __call__(self, optimizer: torch.optim.Optimizer) -> SharpnessAware:
        """Wrap the optimizer; its state and learning rate stay its own."""
        return SharpnessAware(optimizer, self.rho)


class SharpnessAware:
    """An optimizer whose ``step`` is that of algorithm 1 of the paper.

    Args:
        optimizer: takes the step, by the gradient that is found.
        rho: how far to climb.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float):
        self.optimizer, self.rho = optimizer, rho

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss and its gradients on one batch, the same every time, and
                returns the loss. `fit` keeps its second call from touching running statistics.

        Returns:
            The loss at the weights themselves.
        """
        with torch.enable_grad():
            loss = closure()
        if self.rho == 0:
            self.optimizer.step()
            return loss
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            climb = ascent([p.grad for p in weights if p.grad is not None], self.rho)
            torch._foreach_add_(weights, climb)
        try:
            with torch.enable_grad():
                closure()
        finally:
            # Copied back rather than subtracted, which would leave rounding behind.
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
        self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's; SAM itself remembers nothing between steps."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's state."""
        self.optimizer.load_state_dict(state)


def ascent(gradients: list[Tensor], rho: float) -> list[Tensor]:
    """``rho * g / ||g||``, with the norm over all weights together (eq. 2 of the paper for p = 2)."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return list(torch._foreach_mul(gradients, rho / (norm + 1e-12)))
