"""Gradients per sample, all of a batch at once (`torch.func`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from holdfast.errors import UserError, one_of
from holdfast.models.freeze import frozen

__all__ = ["sample_gradients"]

Loss = Callable[[Tensor, Tensor], Tensor]


def sample_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    *,
    parameters: Sequence[str] | None = None,
    loss: Loss = F.cross_entropy,
    chunk: int | None = 64,
) -> dict[str, Tensor]:
    """The gradient of each sample's loss with respect to the weights, the model in evaluation mode.

    Args:
        model: in any mode; it is left as it was.
        x: images in [0, 1] on the model's device.
        y: their labels.
        parameters: names of those to differentiate by; all by default.
        loss: of logits (1, K) and labels (1,), to a scalar.
        chunk: samples differentiated at once; memory grows with it. ``None`` takes all.

    Returns:
        By parameter name, a tensor of shape (N, *the parameter's shape*).

    Raises:
        UserError: a name is no parameter of the model, or the model cannot be differentiated sample by sample.
    """
    with frozen(model):
        weights = {name: value.detach() for name, value in model.named_parameters()}
        names = list(weights) if parameters is None else list(parameters)
        for name in names:
            if name not in weights:
                raise one_of("parameter", name, weights)
        rest = {name: value for name, value in weights.items() if name not in names}
        buffers = dict(model.named_buffers())

        def sample_loss(chosen: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, (chosen, rest, buffers), (image[None],))
            return loss(logits, label[None])

        per_sample = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0), chunk_size=chunk)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels and would loop over samples
                gradients: dict[str, Tensor] = per_sample({name: weights[name] for name in names}, x, y)
        except RuntimeError as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(f"the model cannot be differentiated sample by sample: {first}") from error
    return gradients
