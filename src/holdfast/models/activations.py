"""Watch a network think: the outputs of its activation functions, or of its layers with weights, call by call.

`holdfast.models.tap` follows modules that have a name and keeps their last output. Here every call counts, in the order
of computation: one module used three times gives three outputs, and a ReLU that is a plain function call in somebody's
``forward`` is seen as well.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Watched", "watch"]

Watched = Literal["activations", "weights", "both"]

# By name, which the function, its in-place form and the method of a tensor share but for an underscore.
_ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardtanh", "hardswish", "softplus", "tanh", "sigmoid"),
}
_WEIGHTS = {
    *("linear", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
_FUNCTIONS: dict[Watched, set[str]] = {
    "activations": _ACTIVATIONS,
    "weights": _WEIGHTS,
    "both": _ACTIVATIONS | _WEIGHTS,
}


@contextlib.contextmanager
def watch(model: nn.Module, see: Callable[[str, Tensor], None], what: Watched = "activations") -> Iterator[None]:
    """While the block runs, hand over outputs inside `model` as its forward passes compute them.

    An output is named by the module that computed it (``features.2``), or, where the code of a larger module calls a
    function, by both (``layer1.0.relu``); the second call of that name within a pass is ``layer1.0.relu#2``, and so on.
    Nothing stays on the model when the block ends. What runs as compiled or scripted code cannot be seen.

    Args:
        model: in any mode.
        see: called with name and output, with its autograd graph. A later in-place operation of the model may write
            into this very tensor: clone what is to be kept.
        what: outputs of activation functions, of convolutions and linear layers, or of both.
    """
    watcher = _Watcher(see, _FUNCTIONS[what])
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(watcher.enter(name)).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        yield


class _Watcher(TorchFunctionMode):
    """Sees every function called on tensors; hooks tell it in which module."""

    def __init__(self, see: Callable[[str, Tensor], None], functions: set[str]):
        super().__init__()
        self._see, self._functions = see, functions
        self._inside: list[tuple[str, nn.Module]] = []
        self._calls: Counter[str] = Counter()

    def enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        """What to do when the module of this name starts."""

        def entered(module: nn.Module, inputs: Any) -> None:
            if not name:  # a pass begins
                self._inside.clear()
                self._calls.clear()
            self._inside.append((name, module))

        return entered

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """What to do when a module ends, by whatever way."""
        if self._inside:
            self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        function = getattr(func, "__name__", "").rstrip("_")
        if function in self._functions and self._inside and isinstance(result, Tensor):
            self._see(self._name(function), result)
        return result

    def _name(self, function: str) -> str:
        name, module = self._inside[-1]
        # A module of PyTorch's own is the layer; other modules may call anything, so that the function must be said.
        if not type(module).__module__.startswith("torch.nn.modules"):
            name = f"{name}.{function}" if name else function
        name = name or function
        self._calls[name] += 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"
