"""Dark experience replay: remember not only the labels, but what the network made of an image when it was stored.

The stored logits say more than a label, of what resembles what and how sure the network was, and hold its function
where it was at that time. A second draw from the memory with true labels guards against logits that were stored too
early to be right.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020,
arXiv:2004.07211, section 3. There logits are stored at the very step that sees an image, in training mode and
augmented; here when the request it came with has been served, in evaluation mode and as it is.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.continual.memory import Memory
from holdfast.continual.replay import Replay
from holdfast.data import Images
from holdfast.methods import Objective, Paper, Unlearner
from holdfast.training import Step
from holdfast.unlearning import GradientAscent

__all__ = ["DERPlusPlus"]

_LOGITS, _LABELS = "for the logits", "for the labels"


@dataclass(frozen=True, kw_only=True)
class DERPlusPlus(
    Replay,
    id="der-plus-plus",
    title="Dark experience replay ++",
    paper=Paper(
        title="Dark Experience for General Continual Learning: a Strong, Simple Baseline",
        arxiv="2004.07211",
        venue="NeurIPS",
        year=2020,
    ),
):
    """Cross-entropy of the incoming images, with two independent draws from the memory: one for logits, one for labels.

    Args:
        alpha: weight of the mean squared distance to the stored logits.
        beta: weight of the cross-entropy of remembered images.
    """

    unlearner: Unlearner = GradientAscent()
    alpha: Annotated[float, Field(ge=0)] = 0.2
    beta: Annotated[float, Field(ge=0)] = 0.5

    def rehearsal(self, memory: Memory) -> tuple[Objective, Mapping[str, Images]]:
        """The three losses. With both weights 0 nothing is recalled."""
        objective = _Dark(self, memory)
        draws = {_LOGITS: _numbered(memory.images), _LABELS: memory.images}
        return objective, {name: draws[name] for name in objective.companions}


class _Dark(Objective):
    """The loss; in the draw for the logits, an image's label is its place in the memory."""

    def __init__(self, method: DERPlusPlus, memory: Memory):
        self.method, self.memory = method, memory
        weights = {_LOGITS: method.alpha, _LABELS: method.beta}
        self.companions = tuple(name for name, weight in weights.items() if weight)  # type: ignore[misc]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        loss = F.cross_entropy(step.seen(model(x)), y)
        if _LOGITS in step.companions:
            recalled = step.companions[_LOGITS]
            stored = self.memory.logits[recalled.y.cpu()].to(x.device)
            loss = loss + self.method.alpha * F.mse_loss(model(recalled.x).float(), stored)
        if _LABELS in step.companions:
            recalled = step.companions[_LABELS]
            loss = loss + self.method.beta * F.cross_entropy(model(recalled.x).float(), recalled.y)
        return loss

    def __str__(self) -> str:
        return f"{self.method}, memory {self.memory.fingerprint()}"


def _numbered(images: Images) -> Images:
    """The images, each a class of its own."""
    return images.but(y=torch.arange(len(images)), classes=tuple(map(str, range(len(images)))), columns={})
