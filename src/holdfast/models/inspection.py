"""What a model is made of, and what it costs: layers, parameters, operations, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from holdfast.models.features import logits_of
from holdfast.models.freeze import frozen
from holdfast.run import Run

__all__ = ["Cost", "LayerInfo", "layers", "measure"]


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One submodule.

    Args:
        name: as `tap` and `extract` take it.
        kind: its class.
        parameters: numbers it holds itself, without its children.
        trainable: those that require gradients.
        weight: shape of its ``weight``, if it has one.
        leaf: whether it has no children.
    """

    name: str
    kind: str
    parameters: int
    trainable: int
    weight: tuple[int, ...] | None
    leaf: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs.

    Args:
        parameters: numbers in the parameters, shared ones counted once.
        nonzero: those that are not 0; fewer after pruning.
        buffers: numbers in the buffers (running statistics and the like).
        flops: floating-point operations for one image, a multiplication and an addition counting two; ``None`` when
            PyTorch's counter sees none (compiled or scripted code).
        size_bytes: of all parameters and buffers in memory.
    """

    parameters: int
    nonzero: int
    buffers: int
    flops: int | None
    size_bytes: int


def layers(model: nn.Module) -> list[LayerInfo]:
    """All submodules, in the order of registration, without the model itself."""
    found = []
    for name, module in model.named_modules():
        if not name:
            continue
        own = list(module.parameters(recurse=False))
        weight = getattr(module, "weight", None)
        found.append(
            LayerInfo(
                name=name,
                kind=type(module).__name__,
                parameters=sum(p.numel() for p in own),
                trainable=sum(p.numel() for p in own if p.requires_grad),
                weight=tuple(weight.shape) if isinstance(weight, torch.Tensor) else None,
                leaf=next(module.children(), None) is None,
            )
        )
    return found


def measure(model: nn.Module, shape: Sequence[int], run: Run | None = None) -> Cost:
    """Count parameters, operations and bytes.

    Convolutions, matrix products and attention are counted (`torch.utils.flop_counter`); activations, normalisation and
    additions, a few per cent together, are not.

    Args:
        model: in any mode; it is left as it was.
        shape: channels, height, width of an image.
        run: gives the device; by default where the model is.

    Raises:
        UserError: the model does not take images of this shape.
    """
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    home = next((t.device for t in (*parameters, *buffers)), torch.device("cpu"))
    device = home if run is None else run.torch_device
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.detach().count_nonzero()) for p in parameters),
        buffers=sum(b.numel() for b in buffers),
        flops=_flops(model, shape, device),
        size_bytes=sum(t.numel() * t.element_size() for t in (*parameters, *buffers)),
    )


def _flops(model: nn.Module, shape: Sequence[int], device: torch.device) -> int | None:
    x = torch.full((1, *shape), 0.5, device=device)
    counter = FlopCounterMode(display=False)
    # The fused attention kernels of the CPU are unknown to the counter; written out, attention is two products.
    with frozen(model, device=device, check=x), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        logits_of(model, x)
    return counter.get_total_flops() or None
