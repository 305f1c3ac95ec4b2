"""Masks: which weights stay. The shared idea of all unstructured pruning.

A pruner gives boolean masks for the prunable weights (those of `nn.Conv2d` and `nn.Linear`; never biases or
normalisation). They are applied in place: weights are zeroed, the module keeps its class and its state's keys, and
nothing is recomputed at inference. Zeros alone save no time, only space once the file is compressed.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.compression.batch_norm import recalibrate
from holdfast.data import Data, Images
from holdfast.errors import UserError
from holdfast.methods import Callback, Compressor
from holdfast.run import Run

__all__ = ["HoldMasks", "Masks", "Pruner", "apply_masks", "keep_largest", "prunable", "sparsity"]

Masks = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pruner(Compressor):
    """A compressor that zeroes weights; subclasses say which.

    Args:
        sparsity: share of the prunable weights that become zero, in [0, 1).
        keep_first, keep_last: leave the first, or last, prunable layer as it is; it does not count as prunable then.
        recalibrate: training images that batch norm learns its statistics from anew after pruning; 0 for none.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9
    keep_first: bool = False
    keep_last: bool = False
    recalibrate: Annotated[int, Field(ge=0)] = 1000

    @abstractmethod
    def masks(self, model: nn.Module, data: Any, sparsity: float, *, run: Run) -> Masks:
        """Choose the weights that stay; the model is left exactly as it was.

        Args:
            model: the model to prune.
            data: `Images` or `Data`, for pruners that look at data.
            sparsity: share of zeros; given apart from the field so that schedules can ask for any.
            run: random streams.

        Returns:
            for each prunable weight's name a boolean tensor of its shape, with ``round((1 - sparsity) * total)`` ones
            in all.
        """

    def __call__(self, model: nn.Module, data: Data | Images | None, *, run: Run) -> nn.Module:
        """Prune a copy of `model` once, without training.

        Args:
            model: left as it was.
            data: training images, or a bundle that has them, to recalibrate batch norm with.
            run: random streams, device and batch size.

        Raises:
            UserError: there is nothing to prune, or batch norm must be recalibrated and there are no training images.
        """
        pruned = copy.deepcopy(model)
        masks = self.masks(pruned, data, self.sparsity, run=run)
        apply_masks(pruned, masks)
        if self.recalibrate and sparsity(masks) > 0:
            recalibrate(pruned, _training_images(data), count=self.recalibrate, run=run)
        return pruned


class HoldMasks(Callback):
    """Keeps pruned weights at zero while `fit` trains the rest: they are zeroed again after every step.

    What momentum or weight decay does to a pruned weight is undone before the next forward pass. The gradients of
    pruned weights still count in whatever takes the norm of all gradients, such as clipping or `sam`.

    Args:
        masks: from `Pruner.masks`.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        self.masks = dict(masks)

    def __str__(self) -> str:
        """Names the masks by a hash, so that a training resumes only with the same ones."""
        digest = hashlib.sha256()
        for name, mask in sorted(self.masks.items()):
            digest.update(name.encode() + np.packbits(mask.cpu().numpy()).tobytes())
        return f"hold-masks {digest.hexdigest()[:16]}"

    def on_start(self, state: Any) -> None:
        """Zero the pruned weights before the first step."""
        apply_masks(state.model, self.masks)

    def on_step(self, state: Any) -> None:
        """Zero them again."""
        apply_masks(state.model, self.masks)


def prunable(model: nn.Module, *, keep_first: bool = False, keep_last: bool = False) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers by name, in the order of their definition; a shared one once.

    Args:
        model: any module.
        keep_first, keep_last: leave out the first, or the last, of them.

    Raises:
        UserError: nothing is left to prune.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, nn.Parameter] = {}
    for module in model.modules():
        weight = module.weight if isinstance(module, nn.Conv2d | nn.Linear) else None
        if isinstance(weight, nn.Parameter) and id(weight) in names:
            found.setdefault(names[id(weight)], weight)
    chosen = list(found.items())[keep_first : len(found) - keep_last]
    if not chosen:
        raise UserError(
            f"pruning: the model has {len(found)} convolution and linear weights (parametrised ones do not count), "
            "and none is left to prune."
        )
    return dict(chosen)


def keep_largest(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Masks that keep the highest scores of all layers together.

    Exactly ``round((1 - sparsity) * total)`` are kept: of equal scores those that come first, where comparing with a
    threshold would keep too many.

    Raises:
        UserError: a score is NaN or infinite.
    """
    flat = torch.cat([score.detach().flatten() for score in scores.values()])
    if not torch.isfinite(flat).all():
        raise UserError("pruning: the model's weights hold NaN or infinite values.")
    count = round((1 - sparsity) * len(flat))
    lowest = flat.kthvalue(len(flat) - count + 1).values if count else torch.inf
    above, level = flat > lowest, flat == lowest
    kept = above | (level & (level.cumsum(0) <= count - above.sum()))
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero, in place, the weights whose mask is false."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        # Not a product: it would turn infinite weights into NaN, and leave negative zeros.
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """The share of zeros in the masks, in [0, 1]."""
    total = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / total


def _training_images(data: Data | Images | None) -> Images | None:
    return data.train if isinstance(data, Data) else data
