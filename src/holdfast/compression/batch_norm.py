"""Batch norm's statistics belong to the weights before them: after an edit of the weights they are measured again.

Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020, arXiv:2007.02491, show
how much of what pruning costs this alone regains.
"""

from __future__ import annotations

import torch
from torch import nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["recalibrate"]

_BATCH = 250


@torch.no_grad()
def recalibrate(model: nn.Module, images: Images | None, *, count: int = 1000, run: Run) -> None:
    """Replace, in place, the running statistics of all batch norms by those of training images.

    Nothing else changes: dropout stays off, modes and momenta are restored, and without batch norms with running
    statistics nothing happens at all.

    Args:
        model: any module, on any device.
        images: training images; `count` of them are drawn at random.
        count: how many; batches have up to 250, of equal size.
        run: for the draw.

    Raises:
        UserError: the model has batch norms and there are fewer than two training images.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    if images is None or len(images) < 2:
        raise UserError("batch norm must be recalibrated after pruning, which takes training images; there are none.")
    chosen = torch.randperm(len(images), generator=run.rng("recalibrate"))[:count]
    size = min(_BATCH, len(chosen))
    chosen = chosen[: len(chosen) // size * size]
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the mean over all batches instead of a moving average
        for x, _ in images.select(chosen).batches(size, device):
            model(x)
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
