"""The same architecture with fresh random weights: what retraining starts from."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.models.build import build_model, is_architecture
from holdfast.run import Run

__all__ = ["reinitialised"]


@torch.no_grad()
def reinitialised(model: nn.Module, *, run: Run) -> nn.Module:
    """A copy of `model` with every parameter drawn anew and running statistics reset; the model is left as it was.

    Modules reset themselves by their ``reset_parameters``, children before parents, so that a module that sets its
    children's weights has the last word. A model of `build_model` then gets the starting weights its architecture
    prescribes. Other buffers, such as the constants of a normalisation, stay. Modes, devices and ``requires_grad`` are
    kept; the draw depends on the run's seed alone.

    Raises:
        UserError: no module's ``reset_parameters`` sets some parameter.
    """
    fresh = copy.deepcopy(model)
    places = [(parameter, parameter.device) for parameter in fresh.parameters()]
    # A sentinel: what is still NaN afterwards was set by nobody.
    for parameter, _ in places:
        parameter.data = torch.full_like(parameter.data, math.nan, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed_for("reinitialise"))
        for module in reversed(list(fresh.modules())):
            # Attention of PyTorch names it with an underscore.
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
    prescribed = _prescribed(fresh, run)
    for name, parameter in fresh.named_parameters():
        if name in prescribed:
            parameter.copy_(prescribed[name])
    untouched = [name for name, parameter in fresh.named_parameters() if parameter.isnan().any()]
    if untouched:
        owner = type(fresh.get_submodule(untouched[0].rpartition(".")[0])).__name__
        more = f" and {len(untouched) - 1} more" if len(untouched) > 1 else ""
        raise UserError(
            f"the model cannot be reinitialised: no reset_parameters() sets {untouched[0]!r}{more}; "
            f"give {owner} a reset_parameters method."
        )
    for parameter, device in places:
        parameter.data = parameter.data.to(device)
    return fresh


def _prescribed(model: Any, run: Run) -> dict[str, nn.Parameter]:
    """The starting weights of a model of `build_model`; none for other models, nor where surgery changed its shapes."""
    name = getattr(model, "architecture", None)
    if not (isinstance(name, str) and is_architecture(name) and hasattr(model, "image_shape")):
        return {}
    built = build_model(name, num_classes=model.num_classes, image_shape=model.image_shape, run=run)
    weights = dict(built.named_parameters())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return weights if {name: weight.shape for name, weight in weights.items()} == shapes else {}
