"""Dominant patterns: find the pattern that the network sees, whatever image it is laid over.

The network's output on an image with the pattern is made to agree with its output on the pattern alone. Once it does,
the image no longer matters. Any images will do for the fitting, also of other things than the network knows.

Ye et al., "Dominant Patterns: Critical Features Hidden in Deep Neural Networks", 2021, arXiv:2105.15057.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from holdfast.evasion.losses import Loss
from holdfast.evasion.penultimate import penultimate
from holdfast.evasion.universal import Crowd, UniversalAttack, adam
from holdfast.methods import Paper

__all__ = ["DominantPatterns"]


@dataclass(frozen=True, kw_only=True)
class DominantPatterns(
    UniversalAttack,
    id="dominant-patterns",
    title="Dominant patterns",
    paper=Paper(
        title="Dominant Patterns: Critical Features Hidden in Deep Neural Networks", arxiv="2105.15057", year=2021
    ),
):
    """A universal pattern on which the network's output depends more than on the image under it.

    Needs neither labels nor images of the network's own task: `fit` takes proxy images. Patterns also act on networks
    fine-tuned from the same backbone. Unlike `fg-uap`, the output is compared with that on the pattern alone, and it is
    the logits that are compared. Given a target class, that class's cross-entropy joins with a small weight (ours; the
    paper has no targets). The gain that `fit` reports is the mean agreement. Costs one gradient per image and pass, and
    three passes of the pattern alone per step.

    Args:
        eps: radius of the pattern, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        epochs: passes over the images; the best one counts.
        batch_size: images per step; a tenth of them, where there are fewer than ten batches.
        lr, weight_decay: of Adam, in pixel units. They do not follow `eps`.
        agreement: ``"cos"`` is the cosine, ``"mse"`` minus the mean squared difference, ``"kl"`` minus the
            Kullback-Leibler divergence of the softmaxes.
        output: ``"logits"``, or ``"penultimate"``, the input of the last linear layer.
        target_weight: of the target's cross-entropy, where there is a target.
    """

    eps: Annotated[float, Field(ge=0)] = 10 / 255
    norm: Literal["linf", "l2"] = "linf"
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    agreement: Literal["cos", "mse", "kl"] = "cos"
    output: Literal["logits", "penultimate"] = "logits"
    target_weight: Annotated[float, Field(ge=0)] = 0.1

    def passes(self, crowd: Crowd) -> Iterator[tuple[Tensor, float]]:
        """Make outputs agree; the gain is the mean agreement."""
        agreement = _AGREEMENTS[self.agreement]
        view = crowd.oracle
        if self.output == "penultimate":
            view = penultimate(view, crowd.at(crowd.order(0)[:2]))

        def slope(rows: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            points = crowd.at(rows) + v
            alone = view.logits(v[None])
            reference = alone.expand(len(rows), -1)
            gain, through_images = crowd.slope(rows, points, agreement, reference, view)
            # The agreement also depends on the pattern through the output on it alone.
            pull = _pull(agreement, view.logits(points), alone)
            nobody = torch.zeros(1, dtype=torch.int64, device=v.device)
            _, _, through_pattern = view.gradient(v[None], _along, nobody, pull)
            crowd.queries[rows] += 1
            return gain, through_images + through_pattern[0]

        return adam(
            crowd,
            crowd.zeros(),
            slope,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            target_weight=self.target_weight,
        )


def _pull(agreement: Loss, outputs: Tensor, alone: Tensor) -> Tensor:
    """The gradient of the mean agreement with respect to the output on the pattern alone, (1, K)."""
    with torch.enable_grad():
        alone = alone.detach().clone().requires_grad_()
        mean = agreement(outputs, outputs.new_zeros(len(outputs)), alone.expand_as(outputs)).mean()
        return torch.autograd.grad(mean, alone)[0]


def _along(output: Tensor, y: Tensor, direction: Tensor) -> Tensor:
    return (output * direction).sum(1)


def _cosine(output: Tensor, y: Tensor, alone: Tensor) -> Tensor:
    return F.cosine_similarity(output, alone)


def _minus_square(output: Tensor, y: Tensor, alone: Tensor) -> Tensor:
    return -(output - alone).square().mean(1)


def _minus_divergence(output: Tensor, y: Tensor, alone: Tensor) -> Tensor:
    return -F.kl_div(output.log_softmax(1), alone.log_softmax(1), reduction="none", log_target=True).sum(1)


_AGREEMENTS: dict[str, Loss] = {"cos": _cosine, "mse": _minus_square, "kl": _minus_divergence}
