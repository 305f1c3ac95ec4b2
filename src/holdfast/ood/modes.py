"""Several networks of one kind as one: modes of a loss that training from other seeds has led to.

They agree on what they have learnt and differ on what they have not, so that a detector's number depends on the seed:
report it over modes, with `spread`, and combine them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Paper, Surgery
from holdfast.models import classifier_head, load_weights
from holdfast.models.features import tap_input

__all__ = ["Modes", "Spread", "WithModes", "modes_of", "spread"]


class Modes(nn.Module):
    """Networks whose answer is the mean of their logits; every detector of logits works on it unchanged.

    A pass costs one of each network. The layers in `taps` show what every one of the S networks has made of the images:
    its logits (N, K) and, where it ends in a linear layer, the features (N, D) before that.

    Args:
        models: at least one, of the same classes; they are copied.

    Raises:
        UserError: there is none.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        if not models:
            raise UserError("modes: at least one network is needed.")
        self.modes = nn.ModuleList(copy.deepcopy(model) for model in models)
        self.logits = nn.ModuleList(nn.Identity() for _ in models)
        self.features = nn.ModuleList(nn.Identity() for _ in models)
        self.heads = [_name_of_head(mode) for mode in self.modes]
        for name in ("num_classes", "image_shape", "classes"):
            if hasattr(models[0], name):
                setattr(self, name, getattr(models[0], name))
        self.train(models[0].training)

    @property
    def taps(self) -> list[str]:
        """Names of the layers that show each network's logits and features."""
        features = [f"features.{s}" for s, head in enumerate(self.heads) if head is not None]
        return [*(f"logits.{s}" for s in range(len(self.modes))), *features]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The mean logits."""
        found = []
        for s, (mode, head) in enumerate(zip(self.modes, self.heads, strict=True)):
            with tap_input(None if head is None else mode.get_submodule(head)) as features:
                found.append(self.logits[s](mode(x)))
            for part in features:
                self.features[s](part)
        return torch.stack(found).mean(0)


@dataclass(frozen=True, kw_only=True)
class WithModes(
    Surgery,
    id="modes",
    title="Several networks as one",
    paper=Paper(
        title="Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
        arxiv="1612.01474",
        venue="NeurIPS",
        year=2017,
    ),
):
    """The model and others of its architecture, trained from other seeds, as one that answers with their mean logits.

    On the command line, in front of the model whose weights are the first:

        holdfast ood fit --model resnet20 --weights 0.safetensors --guard "modes(weights=[1.safetensors])" ...

    Args:
        weights: files with the weights of the others; at least one.
    """

    weights: tuple[str, ...] = ()

    def __call__(self, model: nn.Module) -> Modes:
        """The networks in a row, the given one first; it is copied.

        Raises:
            UserError: no weights are given, or they do not fit.
        """
        if not self.weights:
            raise UserError(
                f"{self.id}: give the files of the other networks' weights, e.g. {self.id}(weights=[b.safetensors])."
            )
        others = []
        for path in self.weights:
            other = copy.deepcopy(model)
            load_weights(other, path)
            others.append(other)
        return Modes([model, *others])


def modes_of(model: nn.Module) -> Sequence[nn.Module]:
    """The networks of `Modes`; of any other model itself, the only one."""
    return list(model.modes) if isinstance(model, Modes) else [model]


@dataclass(frozen=True)
class Spread:
    """A metric over modes.

    Args:
        mean: over modes.
        std: sample standard deviation; 0 for a single mode.
        low, high: the least and the largest.
    """

    mean: float
    std: float
    low: float
    high: float

    @property
    def range(self) -> float:
        """From the least to the largest."""
        return self.high - self.low


def spread(values: Sequence[float]) -> Spread:
    """How much a metric depends on the seed, from its value for each mode.

    Raises:
        UserError: there are no values.
    """
    if not len(values):
        raise UserError("spread: there are no values to summarise.")
    found = np.asarray(values, dtype=np.float64)
    std = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    return Spread(float(found.mean()), std, float(found.min()), float(found.max()))


def _name_of_head(model: nn.Module) -> str | None:
    head = classifier_head(model)
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None
