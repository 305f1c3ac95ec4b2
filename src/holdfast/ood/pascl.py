"""PASCL: outlier exposure for long-tailed data, where rare classes look like outliers.

A contrastive term pulls images of the same rare class together and pushes them away from outliers. It is partial,
since frequent classes take no part in it, and asymmetric, since outliers are pushed away but never pulled together.
A second stage, `abf`, mends the classification of rare classes.

Wang et al., "Partial and Asymmetric Contrastive Learning for Out-of-Distribution Detection in Long-Tailed Recognition",
ICML 2022, arXiv:2207.01160, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.models import classifier_head
from holdfast.models.features import tap_input
from holdfast.ood.outlier_exposure import exposure
from holdfast.training import Step

__all__ = ["PASCL", "contrast", "tail_classes"]


@dataclass(frozen=True, kw_only=True)
class PASCL(
    Objective,
    id="pascl",
    title="PASCL",
    paper=Paper(
        title="Partial and Asymmetric Contrastive Learning for Out-of-Distribution Detection in Long-Tailed "
        "Recognition",
        arxiv="2207.01160",
        venue="ICML",
        year=2022,
    ),
):
    """Outlier exposure on two views of every image, and a contrast between rare classes and outliers.

    A batch of N images, their second views and N outliers are one pass of the model. The paper trains with Adam at
    1e-3, weight decay 5e-4, a cosine to zero, batches of 256, and the transforms `crop`, `flip`, `color-jitter` and
    `grayscale`, which make the views. For CIFAR-100 it takes ``contrast=0.02, temperature=0.2``. Score with `msp`.

    Args:
        weight: of the outliers' uniformity.
        contrast: weight of the contrastive term; 0 is outlier exposure on two views.
        temperature: that similarities are divided by.
        tail: share of the classes, the rarest ones, that take part.
        width: numbers in the projection that similarities are taken of. Its hidden layer is as wide as the features.
    """

    views: ClassVar[int] = 2
    companions: ClassVar[tuple[str, ...]] = ("outliers",)

    weight: Annotated[float, Field(ge=0)] = 0.5
    contrast: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.07
    tail: Annotated[float, Field(ge=0, le=1)] = 0.4
    width: Annotated[int, Field(ge=1)] = 128

    def heads(self, model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
        """The projection, which reads what the model's last linear layer reads.

        Raises:
            UserError: the model ends in none.
        """
        if not self.contrast:
            return {}
        layer = classifier_head(model, x)
        if layer is None:
            raise UserError(f"{self.id}: the model must end in a linear layer, whose input is contrasted.")
        name = next(name for name, module in model.named_modules() if module is layer)
        return {"projection": _Projection(name, layer.in_features, self.width)}

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y), its second view and its outliers."""
        images = torch.cat([x, *step.views, step.companions["outliers"].x])
        labels = y.repeat(1 + len(step.views))
        with tap_input(self._layer(step)) as features:
            logits = model(images).float()
        step.seen(logits[: len(y)])
        loss = exposure(logits[: len(labels)], labels, logits[len(labels) :], self.weight)
        if not self.contrast:
            return loss
        if not features:
            raise UserError(f"{self.id}: a compiled model does not show its features; train it with compile=False.")
        assert step.counts is not None
        rare = tail_classes(step.counts, self.tail)[labels]
        projected = step.heads["projection"](features[0])
        known, unknown = projected[: len(labels)], projected[len(labels) :]
        return loss + self.contrast * contrast(known[rare], labels[rare], unknown, self.temperature)

    def _layer(self, step: Step) -> nn.Module | None:
        """The layer whose input is projected."""
        if not self.contrast:
            return None
        assert step.model is not None
        return step.model.get_submodule(cast(_Projection, step.heads["projection"]).reads)


def contrast(
    known: Float[Tensor, "n d"], y: Int64[Tensor, " n"], unknown: Float[Tensor, "m d"], temperature: float
) -> Tensor:
    """The mean over known images of minus the log-probability of their like, among all but themselves and outliers.

    Args:
        known: unit vectors of both views of images of rare classes; N = 0 gives 0.
        y: their labels.
        unknown: unit vectors of outliers.
        temperature: that the similarities are divided by.
    """
    n = len(known)
    itself = torch.eye(n, n + len(unknown), dtype=torch.bool, device=known.device)
    similarity = (known @ torch.cat([known, unknown]).T / temperature).masked_fill(itself, -torch.inf)
    like = (y[:, None] == y) & ~itself[:, :n]
    of_like = similarity.log_softmax(1)[:, :n].masked_fill(~like, 0).sum(1) / like.sum(1).clamp_min(1)
    return -of_like.sum() / max(n, 1)


def tail_classes(counts: Int64[Tensor, " k"], share: float) -> Bool[Tensor, " k"]:
    """Which classes are among the given share of the rarest; of equally rare ones those of higher number first."""
    frequent = counts.argsort(descending=True, stable=True)
    tail = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    tail[frequent[round((1 - share) * len(counts)) :]] = True
    return tail


class _Projection(nn.Module):
    """From features to unit vectors.

    Args:
        reads: name of the layer whose input it reads.
        inputs, outputs: numbers per image.
    """

    def __init__(self, reads: str, inputs: int, outputs: int):
        super().__init__()
        self.reads = reads
        self.layers = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features.float()), dim=1)
