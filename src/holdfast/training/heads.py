"""An objective's own modules, such as a projection: in the model while it is trained, and gone afterwards.

Being part of the model, they are optimised, averaged, shared between processes and saved in checkpoints with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from holdfast.data.images import Images
from holdfast.methods import Objective
from holdfast.run import Run

__all__ = ["attach", "detach", "put_aside"]

_NAME = "objective_heads"


def attach(
    model: nn.Module, objective: Objective, images: Images, device: torch.device, run: Run
) -> Mapping[str, nn.Module]:
    """Give the model the modules that the objective learns, if any; their first weights belong to the run's seed."""
    x, _ = next(images.batches(2, device))
    # Layers draw their first weights from the global generator when they are made: lend it a stream meanwhile.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run.rng("heads").get_state())
        heads = dict(objective.heads(model, x))
    if heads:
        model.add_module(_NAME, _Heads(heads).to(device))
    return heads


def detach(*models: nn.Module | None) -> None:
    """Take them away again."""
    for model in models:
        if model is not None:
            model._modules.pop(_NAME, None)


@contextlib.contextmanager
def put_aside(model: nn.Module) -> Iterator[None]:
    """While the block runs, the model is without them: as it will be after the training."""
    heads = model._modules.pop(_NAME, None)
    try:
        yield
    finally:
        if heads is not None:
            model.add_module(_NAME, heads)


class _Heads(nn.ModuleDict):
    """Modules that the model holds and does not call; a model that calls all it holds, one by one, calls this."""

    def forward(self, x: Tensor) -> Tensor:
        return x
