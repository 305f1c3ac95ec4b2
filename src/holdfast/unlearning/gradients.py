"""Gradients of a trained model on a set of images, and which weights they single out.

All are taken in evaluation mode and without augmentation. Batches are drawn at random, for a folder's images stand in
the order of their classes, and the square of a batch's gradient depends on who is in the batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.compression.masks import Masks, keep_largest
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Callback
from holdfast.models.features import logits_of
from holdfast.run import Run

__all__ = ["FreezeExcept", "Gradients", "batch_gradients", "importance", "mean_gradient", "most_salient"]

Gradients = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def batch_gradients(
    model: nn.Module, images: Images, *, run: Run, batch_size: int = 256, loss: Loss = F.cross_entropy
) -> Iterator[tuple[Gradients, int]]:
    """The gradient of each batch's loss with respect to the weights that train, and the batch's size.

    Args:
        model: left as it was.
        images: at least one.
        run: device, order, and precision of the passes.
        batch_size: images per gradient.
        loss: of logits (B, K) and labels (B,), to a scalar.

    Raises:
        UserError: no weight trains, or a gradient is not finite.
    """
    twin = copy.deepcopy(model).to(run.torch_device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    weights = {name: value for name, value in twin.named_parameters() if value.requires_grad}
    if not weights:
        raise UserError("unlearning: all of the model's weights are frozen (requires_grad is false).")
    order = torch.randperm(len(images), generator=run.rng("batches of gradients"))
    for x, y in images.select(order).batches(batch_size, run.torch_device):
        with run.autocast():
            logits = logits_of(twin, x)
        value = loss(logits.float(), y)
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }
        if not torch.isfinite(value):
            raise UserError("unlearning: the model's loss on these images is not finite.")
        yield gradients, len(y)


def mean_gradient(
    model: nn.Module, images: Images, *, run: Run, batch_size: int = 256, loss: Loss = F.cross_entropy
) -> Gradients:
    """The gradient of the mean loss; arguments as for `batch_gradients`."""
    total: Gradients = {}
    for gradients, count in batch_gradients(model, images, run=run, batch_size=batch_size, loss=loss):
        for name, gradient in gradients.items():
            share = gradient * (count / len(images))
            total[name] = total[name] + share if name in total else share
    return total


def importance(
    model: nn.Module,
    images: Images,
    *,
    run: Run,
    batch_size: int = 256,
    loss: Loss = F.cross_entropy,
    power: Literal[1, 2] = 2,
) -> Gradients:
    """How much each weight matters: the mean over batches of their gradients' size, squared unless `power` is 1.

    Squared it stands for the diagonal of the Fisher information. It falls as the batch grows, so what is compared must
    use one batch size. The other arguments are those of `batch_gradients`.
    """
    total: Gradients = {}
    batches = 0
    for gradients, _ in batch_gradients(model, images, run=run, batch_size=batch_size, loss=loss):
        batches += 1
        for name, gradient in gradients.items():
            size = gradient.square() if power == 2 else gradient.abs()
            total[name] = total[name] + size if name in total else size
    return {name: size / batches for name, size in total.items()}


def most_salient(gradients: Mapping[str, Tensor], share: float) -> Masks:
    """Masks of the weights with the largest gradients, over all layers together: ``round(share * total)`` of them."""
    return keep_largest({name: gradient.abs() for name, gradient in gradients.items()}, 1 - share)


class FreezeExcept(Callback):
    """Keeps all but some weights exactly where they were, whatever momentum or weight decay would do to them.

    Args:
        masks: by parameter name, true where a weight may move. Parameters without a mask may.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        self.masks = dict(masks)
        self._kept: dict[str, tuple[nn.Parameter, Tensor, Tensor]] = {}

    def __str__(self) -> str:
        """Names the masks by a hash, so that a training resumes only with the same ones."""
        digest = hashlib.sha256()
        for name, mask in sorted(self.masks.items()):
            digest.update(name.encode() + np.packbits(mask.cpu().numpy()).tobytes())
        return f"freeze-except {digest.hexdigest()[:16]}"

    def on_start(self, state: Any) -> None:
        """Remember where the others are: where they were at the very start, also when a training resumes."""
        parameters = dict(state.model.named_parameters())
        for name, mask in self.masks.items():
            parameter = parameters[name]
            held = ~mask.to(parameter.device)
            self._kept[name] = parameter, held, parameter.detach()[held].clone()

    def on_gradient(self, state: Any) -> None:
        """They get no gradient."""
        for parameter, held, _ in self._kept.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(held, 0)

    @torch.no_grad()
    def on_step(self, state: Any) -> None:
        """Put them back."""
        for parameter, held, values in self._kept.values():
            parameter[held] = values
