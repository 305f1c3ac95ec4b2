"""Forward passes on a CPU with activations and additions fused into the convolutions before them.

An activation or a residual addition of its own reads and writes a whole feature map for one operation per value; inside
oneDNN's convolution it costs nothing. For ResNet-20 a pass takes a fifth less time. The fused operations have no
gradient, so this is for searches that need none. Whatever cannot be fused faithfully is left as it is, and so is code
of which nobody knows whether it does more than compute.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.models.normalize import Normalize

__all__ = ["fuse_for_inference"]

_AGREEMENT = 1e-4  # of the largest logit
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
    known = all(type(module).__module__.split(".")[0] in _KNOWN for module in model.modules())
    if not known or example.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    try:
        graph = _Tracer().trace(model)
        fused = torch.fx.GraphModule(model, graph)
        if not _fuse(fused):
            return model
        with torch.no_grad():
            expected, got = model(example), fused(example)
    except Exception:  # a stranger's code may defy tracing in any way, and these operations are PyTorch's own affair
        return model
    close = float((expected - got).abs().max()) <= _AGREEMENT * float(expected.abs().max().clamp_min(1e-6))
    return fused if close and torch.equal(expected.argmax(1), got.argmax(1)) else model


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
