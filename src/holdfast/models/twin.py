"""A fast copy of a model for the many passes of an attack: batch norms folded into the convolutions before them.

In evaluation mode a batch norm is an affine map per channel, so ``bn(conv(x))`` is one convolution with other weights
(Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.2). Which layers follow each other is seen by watching a forward
pass, which works for any code, and the result is verified on the example; a model that does not agree is copied as is.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from holdfast.models.features import logits_of
from holdfast.models.freeze import fast_layout, frozen, full_precision
from holdfast.models.queryable import only_answers

__all__ = ["fast_twin"]

_AGREEMENT = 1e-4  # of the largest logit
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fast_twin(model: nn.Module, example: Float[Tensor, "n c h w"]) -> nn.Module:
    """A copy of `model` in evaluation mode, without weight gradients, channels-last, batch norms folded if possible.

    The copy gives the same logits to within 1e-4 of the largest and the same predictions on `example`; where folding
    would break that, the copy is unfolded. Use it for directions to search in; verdicts belong to the model itself.
    In float32 its gradient differs from the model's by rounding, and now and then at single pixels by more, where an
    activation within rounding of 0 opens or closes; a change of memory layout alone does the same.

    Args:
        model: in any mode; it is left as it was.
        example: some images in [0, 1] on the model's device; the more, the surer the verification.

    Returns:
        The copy. A model of which no faithful copy can be had (it only answers queries, refuses, or answers at random)
        is returned itself, so keep to `frozen` around the use of the twin.

    Raises:
        UserError: the model does not return logits.
    """
    if only_answers(model):
        return model
    source = getattr(model, "_orig_mod", model)  # inside what torch.compile returns
    # A copy may share code or modules with its original (closures), hence the original is lent throughout.
    with frozen(source), torch.no_grad(), full_precision():
        expected = logits_of(source, example)
        for prepare in (_fold_all, _leave):
            try:
                twin = copy.deepcopy(source).requires_grad_(False)
                prepare(twin, example)
                got = logits_of(twin, example)
            except Exception:  # a stranger's model may refuse to be copied or to run without its batch norms in any way
                continue
            if _agree(expected, got):
                return twin
    return model


def _agree(expected: Tensor, got: Tensor) -> bool:
    scale = expected.abs().amax().clamp_min(1e-6)
    close = bool((got - expected).abs().amax() <= _AGREEMENT * scale)
    return close and torch.equal(got.argmax(1), expected.argmax(1))


def _leave(model: nn.Module, example: Tensor) -> None:
    """Fold nothing."""


def _fold_all(model: nn.Module, example: Tensor) -> None:
    """Fold every batch norm that is the only reader of a layer's output, both being used once."""
    made: list[tuple[nn.Module, Tensor]] = []
    normed: list[tuple[nn.Module, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _FOLDABLE):
                hook = module.register_forward_hook(lambda module, _, output: made.append((module, output)))
                stack.callback(hook.remove)
            elif isinstance(module, _NORMS) and module.running_var is not None:
                hook = module.register_forward_pre_hook(lambda module, args: normed.append((module, args[0])))
                stack.callback(hook.remove)
        readings = stack.enter_context(_Readings())
        logits_of(model, example[:2])
    uses = Counter(id(module) for module, _ in (*made, *normed))
    makers = {id(tensor): module for module, tensor in made}
    for norm, tensor in normed:
        layer = makers.get(id(tensor))
        if layer is not None and uses[id(layer)] == uses[id(norm)] == readings.of(tensor) == 1:
            _fold(model, layer, norm)


class _Readings(TorchFunctionMode):
    """Counts, for every tensor, the operations that make a tensor from it."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[int] = Counter()
        self._alive: list[Tensor] = []  # an id means one tensor only as long as that tensor lives

    def of(self, tensor: Tensor) -> int:
        return self._counts[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list):
            tensors = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            self._alive += tensors.values()
            self._counts.update(tensors.keys())
        return result


def _fold(model: nn.Module, layer: Any, norm: Any) -> None:
    """Multiply the batch norm into the layer's weights, in float64, and put an identity in its place."""
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if layer.bias is not None:
        shift = shift + layer.bias.double() * gain
    weight = layer.weight.double() * gain.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.weight = nn.Parameter(fast_layout(weight.to(layer.weight.dtype)), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)
    for module in list(model.modules()):
        for child, value in list(module._modules.items()):
            if value is norm:
                module._modules[child] = nn.Identity().eval()
