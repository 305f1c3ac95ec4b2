"""Forward passes on a CPU with activations and additions fused into the convolutions before them.

An activation or a residual addition of its own reads and writes a whole feature map for one operation per value; inside
oneDNN's convolution it costs nothing. For ResNet-20 a pass takes a fifth less time. The fused operations have no
gradient, so this is for searches that need none. Whatever cannot be fused faithfully is left as it is, and so is code
of which nobody knows whether it does more than compute.

The same in bf16, which processors with matrix units compute three times as fast, is for passes that only sort out what
is not worth a pass in float32. On a fused ResNet-20 it takes 0.28 of the time; under autocast, which rounds every
weight anew and fuses nothing, 0.43.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.models.normalize import Normalize

__all__ = ["fuse_for_inference", "round_for_inference"]

_AGREEMENT = 1e-4  # of the largest logit
_ROUGHLY = 2.0**-5  # of the range of an image's logits: some ten times what bf16 blurs in an ordinary network
# Whose forward methods are known to have no side effects, which a traced copy would lose.
_KNOWN = {"torch", "holdfast", "torchvision", "timm"}
_RELU_CALLS = {F.relu, torch.relu, torch.relu_, F.relu_}
_ADD_CALLS = {operator.add, operator.iadd, torch.add}


def fuse_for_inference(model: nn.Module, example: Float[Tensor, "n c h w"]) -> nn.Module:
    """A copy of `model` that computes the same on a CPU, without gradients and faster; or `model` itself.

    Args:
        model: in evaluation mode, batch norms folded (see `fast_twin`), on the device of `example`.
        example: images to verify the copy on: logits to within 1e-4 of the largest, and the same predictions.

    Returns:
        A module to be called under `torch.no_grad`. Its weights are those of `model`, not copies.
    """
    try:
        fused = _fused(model, example)
        if fused is None:
            return model
        with torch.no_grad():
            expected, got = model(example), fused(example)
    except Exception:  # a stranger's code may defy tracing in any way, and these operations are PyTorch's own affair
        return model
    close = float((expected - got).abs().max()) <= _AGREEMENT * float(expected.abs().max().clamp_min(1e-6))
    return fused if close and torch.equal(expected.argmax(1), got.argmax(1)) else model


def round_for_inference(model: nn.Module, example: Float[Tensor, "n c h w"]) -> nn.Module | None:
    """A copy of `model` that computes about the same in bf16, without gradients and faster; or None.

    On a CPU convolutions are fused and their weights kept in bf16; images are normalised, and what follows the last
    convolution is computed, in float32, which costs nothing and takes a fifth to two fifths off the error of the
    logits. Where that cannot be done, and on other devices, `model` runs under autocast.

    Args:
        model: as for `fuse_for_inference`.
        example: images to verify the copy on: logits to within 1/32 of the range of each image's.

    Returns:
        A module to be called under `torch.no_grad`, or None where bf16 gives other logits. Do not change the weights of
        `model` while it is in use.
    """
    with torch.no_grad():
        expected = model(example)
        near = _ROUGHLY * (expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True))
        for make in (_rounded, lambda model, _: _Autocast(model)):
            try:
                rounded = make(model, example)
                if rounded is not None and bool(((rounded(example) - expected).abs() <= near).all()):
                    return rounded
            except Exception:  # of a stranger's operations any may lack a form for bf16
                continue
    return None


def _fused(model: nn.Module, example: Tensor) -> torch.fx.GraphModule | None:
    """The model with all fused that can be; None where that is nothing."""
    known = all(type(module).__module__.split(".")[0] in _KNOWN for module in model.modules())
    if not known or example.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    fused = torch.fx.GraphModule(model, _Tracer().trace(model))
    return fused if _fuse(fused) else None


def _rounded(model: nn.Module, example: Tensor) -> nn.Module | None:
    """Fused, with convolutions in bf16."""
    fused = _fused(model, example)
    if fused is None:
        return None
    rounded = copy.deepcopy(fused)
    modules, graph = dict(rounded.named_modules()), rounded.graph
    layers = [n for n in graph.nodes if n.op == "call_module" and isinstance(modules[n.target], _CONVOLUTIONS)]
    for module in modules.values():
        if isinstance(module, _CONVOLUTIONS):
            module.to(torch.bfloat16)
    first = [n for n in graph.nodes if n.op == "placeholder" or isinstance(modules.get(str(n.target)), Normalize)]
    for node, dtype in ((first[-1], torch.bfloat16), (layers[-1], torch.float32)):
        with graph.inserting_after(node):
            cast = graph.call_method("to", (node, dtype))
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    graph.lint()
    rounded.recompile()
    return rounded


class _Autocast(nn.Module):
    """A model under autocast, with its output in float32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.model(x).float()


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)


class _Convolution(nn.Module):
    """A convolution, plus another tensor where one is given, then a ReLU."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.geometry: tuple[Any, ...] = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        pointwise: Any = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return pointwise(x, self.weight, self.bias, *self.geometry, "relu", [], "")
        return pointwise.binary(x, other, self.weight, self.bias, *self.geometry, "add", 1.0, "relu", [], "")


_CONVOLUTIONS = (_Convolution, nn.Conv2d)


def _fuse(module: torch.fx.GraphModule) -> int:
    """Fuse what can be fused, in place; returns how much that was."""
    graph, modules, count = module.graph, dict(module.named_modules()), 0
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if not _is_relu(node, modules):
            continue
        source = node.args[0]
        if _is_convolution(source, modules):
            layer, arguments = source, source.args
        elif source.op == "call_function" and source.target in _ADD_CALLS and len(source.users) == 1:
            ends = [end for end in source.args if _is_convolution(end, modules)]
            both = len(source.args) == 2 and all(isinstance(end, torch.fx.Node) for end in source.args)
            if not ends or source.kwargs or not both:
                continue
            # The later one of two convolutions: the other has been computed by then.
            layer = max(ends, key=list(graph.nodes).index)
            other = source.args[1] if source.args[0] is layer else source.args[0]
            arguments = (*layer.args, other)
        else:
            continue
        name = f"fused_{count}"
        module.add_submodule(name, _Convolution(modules[layer.target]))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, arguments))
        for dead in (node, source, layer) if source is not layer else (node, layer):
            graph.erase_node(dead)
        count += 1
    graph.lint()
    module.recompile()
    return count


def _is_relu(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    if not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return (node.op == "call_function" and node.target in _RELU_CALLS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def _is_convolution(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether the node is a plain convolution whose output nobody else reads."""
    if not isinstance(node, torch.fx.Node) or node.op != "call_module" or len(node.users) != 1:
        return False
    layer = modules[str(node.target)]
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.dtype == torch.float32
        and not layer._forward_hooks
    )
