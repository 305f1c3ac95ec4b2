"""Boundary expanding: give the forgotten images a class of their own, and then remove it.

The classifier gets one more output; a short fine-tuning moves the forget set there; without that output the images fall
to whichever classes are left. Made for forgetting a class.

Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary", CVPR 2023,
arXiv:2303.11570, section 3.3. A widely copied implementation leaves the additional output in place.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Paper
from holdfast.models import classifier_head
from holdfast.run import Run
from holdfast.training import SGD, Optimizer
from holdfast.unlearning.fine_tuning import FineTuning, check_request

__all__ = ["BoundaryExpanding"]


@dataclass(frozen=True, kw_only=True)
class BoundaryExpanding(
    FineTuning,
    id="boundary-expanding",
    title="Boundary expanding",
    paper=Paper(
        title="Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary",
        arxiv="2303.11570",
        venue="CVPR",
        year=2023,
    ),
):
    """Move the forget set into a class that does not exist. The retained images are not looked at: keep epochs few."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    optimizer: Optimizer = SGD(lr=1e-3, momentum=0.9, nesterov=False, weight_decay=0.0)
    crop: BatchTransform | None = None
    flip: BatchTransform | None = None

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode, with as many outputs as before.

        Raises:
            UserError: nothing is to be forgotten or retained, or the logits do not come from a linear layer.
        """
        check_request(forget, retain)
        wide = copy.deepcopy(model)
        x, _ = next(forget.batches(2, next(wide.parameters()).device))
        head = classifier_head(wide, x)
        if head is None:
            raise UserError(
                "boundary-expanding: the model's logits do not come from a linear layer that could be widened."
            )
        classes = head.out_features
        _widen(head, run.child(self.id))
        shadow = forget.but(
            y=torch.full_like(forget.y, classes), classes=(*_names(forget, classes), "a class of its own")
        )
        tuned = self.tuned(wide, shadow, run=run)
        narrowed = classifier_head(tuned, x.to(run.torch_device))
        assert narrowed is not None
        _resize(narrowed, narrowed.weight[:classes], None if narrowed.bias is None else narrowed.bias[:classes])
        return tuned


def _names(images: Images, count: int) -> tuple[str, ...]:
    """Class names for all outputs of the model, which may have more than the data has classes."""
    return images.classes + tuple(f"output {k}" for k in range(images.num_classes, count))


def _widen(head: nn.Linear, run: Run) -> None:
    """One more output, with the weights of a fresh layer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed_for("shadow"))
        fresh = nn.Linear(head.in_features, 1).to(head.weight)
    bias = None if head.bias is None else torch.cat([head.bias, fresh.bias])
    _resize(head, torch.cat([head.weight, fresh.weight]), bias)


def _resize(head: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    trains = head.weight.requires_grad
    head.out_features = len(weight)
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=trains)
    if bias is not None:
        trains = head.bias.requires_grad
        head.bias = nn.Parameter(bias.detach().clone(), requires_grad=trains)
