"""A running average of a model's weights (EMA): smoother than the last step's, and often better.

Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; with exponential weights as in
Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

__all__ = ["averaged_copy", "update_average"]


def averaged_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` to hold the average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `model` by ``1 - decay``, more in the first steps so that the start is soon forgotten.

    Running statistics of batch normalisation are averaged like the weights they belong to; whole numbers are copied.

    Args:
        average: from `averaged_copy`.
        model: after its optimizer step.
        decay: in [0, 1).
        step: optimizer steps done before this one.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(_tensors(average), _tensors(model), strict=True))
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [m for _, m in floats], 1 - decay)
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(itertools.chain(model.parameters(), model.buffers()))
