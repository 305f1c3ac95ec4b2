"""Fast steps and slow ones: what a method obeys that jumps first, through a mask, and then repairs on what is retained.

A jump followed by descents on the retained images comes out where the jump would have led had it been preconditioned by
the curvature of their loss. `Masked` and `Follow` are callbacks of `holdfast.training.fit`; the objective says in
``step.memory[FAST]`` which kind of step it is.

Huang et al., "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement", NeurIPS 2024,
arXiv:2409.19732, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from holdfast.compression.masks import Masks
from holdfast.methods import Callback

__all__ = ["FAST", "Follow", "Masked"]

FAST = "fast-slow.fast"  # whether the gradient at hand is that of a fast step
_BEFORE = "fast-slow.before"  # the weights at the beginning of a round
_REPAIRS = "fast-slow.repairs"  # done in this round


class Masked(Callback):
    """Masks and clips the gradients of fast steps.

    Args:
        masks: by parameter name, true where a weight may move. Parameters without a mask may.
        clip: largest norm of the gradient, after masking.
    """

    def __init__(self, masks: Masks, clip: float):
        self.masks, self.clip = masks, clip

    def __str__(self) -> str:
        return "masked and clipped fast steps"

    def on_gradient(self, state: Any) -> None:
        """Mask, then clip."""
        if not state.memory[FAST]:
            return
        for name, parameter in state.model.named_parameters():
            if parameter.grad is not None and name in self.masks:
                parameter.grad.mul_(self.masks[name])
        nn.utils.clip_grad_norm_(state.model.parameters(), self.clip)


class Follow(Callback):
    """After each round, takes the weights back part of the way to where they were before it.

    A round ends with a repair and takes in the fast step before it, if there was one.

    Args:
        share: how far the weights follow, in (0, 1].
        repairs: the number of them that ends a round; 0 where there are none, so that every step is a round.
    """

    def __init__(self, share: float, repairs: int = 1):
        self.share, self.repairs = share, repairs

    def __str__(self) -> str:
        return f"follow by {self.share}" + (f" after {self.repairs} repairs" if self.repairs != 1 else "")

    def on_gradient(self, state: Any) -> None:
        """Remember where a round begins."""
        if _BEFORE not in state.memory:
            state.memory[_BEFORE] = {name: p.detach().clone() for name, p in state.model.named_parameters()}
            state.memory[_REPAIRS] = 0

    @torch.no_grad()
    def on_step(self, state: Any) -> None:
        """End it after its last repair."""
        state.memory[_REPAIRS] += not state.memory[FAST]
        if state.memory[_REPAIRS] < self.repairs:
            return
        before = state.memory.pop(_BEFORE)
        for name, parameter in state.model.named_parameters():
            parameter.lerp_(before[name], 1 - self.share)
