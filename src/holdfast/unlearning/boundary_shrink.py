"""Boundary shrink: give each forgotten image the label on the other side of its nearest boundary.

A step along the sign of the gradient on the trained model says which class lies nearest; the model is then fine-tuned
on the unchanged images with those labels. The region of the forgotten class is divided among its neighbours, which
costs the others the least. Made for forgetting a class.

Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary", CVPR 2023,
arXiv:2303.11570, section 3.2.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Paper
from holdfast.models import frozen
from holdfast.models.features import logits_of
from holdfast.run import Run
from holdfast.training import SGD, Optimizer
from holdfast.unlearning.fine_tuning import FineTuning, check_request

__all__ = ["BoundaryShrink", "nearest_classes"]


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(
    FineTuning,
    id="boundary-shrink",
    title="Boundary shrink",
    paper=Paper(
        title="Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary",
        arxiv="2303.11570",
        venue="CVPR",
        year=2023,
    ),
):
    """Fine-tune on the forget set with the nearest wrong labels. The retained images are not looked at.

    Args:
        eps: size of the step that finds the nearest class, l_inf, in the units of images in [0, 1].
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    optimizer: Optimizer = SGD(lr=1e-3, momentum=0.9, nesterov=False, weight_decay=0.0)
    crop: BatchTransform | None = None
    flip: BatchTransform | None = None
    eps: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten or retained, or there is no other class.
        """
        check_request(forget, retain)
        labels = nearest_classes(model, forget, eps=self.eps, run=run)
        return self.tuned(model, forget.but(y=labels), run=run)


def nearest_classes(model: nn.Module, images: Images, *, eps: float, run: Run) -> Int64[Tensor, " n"]:
    """The wrong class that the model finds most likely after a step of `eps` up the loss of the true one, (N,).

    Where the step does not fool the model, it is the runner-up; the authors' code then keeps the true label.

    Raises:
        UserError: there is no other class.
    """
    if images.num_classes < 2:
        raise UserError("boundary-shrink: with a single class there is no boundary.")
    found = []
    with frozen(model, device=run.torch_device):
        for x, y in images.batches(run.batch_size, run.torch_device):
            x = x.requires_grad_(True)
            loss = nn.functional.cross_entropy(logits_of(model, x), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            moved = ((x.detach() + eps * gradient.sign()).clamp(0, 1) * 255).round() / 255
            with torch.no_grad():
                others = logits_of(model, moved).scatter(1, y[:, None], -torch.inf)
            found.append(others[:, : images.num_classes].argmax(1).cpu())
    return torch.cat(found)
