"""UG-CLU: one rule for learning and for forgetting, fast through a mask and slow on what is remembered.

The model that ought to result was trained on what remains and what is new, without what is to be forgotten. The way
there is, in one direction, a descent on the images to learn and an ascent on those to forget, weighted sample by sample
and confined to weights that matter more to the request than to the rest; and the curvature of what remains in front of
it. The curvature is never formed: a fast step along that direction, followed by repairs on the memory, comes out where
it would lead.

Huang et al., "A Unified Gradient-based Framework for Task-agnostic Continual Learning-Unlearning", 2025,
arXiv:2505.15178, gives this decomposition; the steps themselves follow SFR-on of the same authors. That learning is
masked as forgetting is, and that of the images to learn those lead which are least known, is our reading.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.compression.masks import Masks
from holdfast.continual.memory import LOGITS, Memory
from holdfast.continual.replay import Trained
from holdfast.continual.request import Request
from holdfast.data import Images, concat
from holdfast.methods import Callback, Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, Cosine, Interleaved, Optimizer, Schedule, Step
from holdfast.unlearning.fast_slow import FAST, Follow, Masked
from holdfast.unlearning.gradients import importance
from holdfast.unlearning.sfron import adaptive_ascent, balanced_mask

__all__ = ["UGCLU", "adaptive_descent"]

_RECALLED = "recalled"  # the column, bool (N,), that marks images of the memory
_FORGET = "forget"


@dataclass(frozen=True, kw_only=True)
class UGCLU(
    Trained,
    id="ug-clu",
    title="Unified gradient-based continual learning and unlearning",
    paper=Paper(
        title="A Unified Gradient-based Framework for Task-agnostic Continual Learning-Unlearning",
        arxiv="2505.15178",
        year=2025,
    ),
):
    """Masked, weighted and clipped steps on the request, each followed by repairs on the memory.

    Epochs count passes over the images to learn, or, where there are none, over those to forget. Images to learn and to
    forget pass through the network separately, so that batch normalisation does not mix them. One optimizer takes all
    steps, and its momentum carries over. While the memory is empty there are neither repairs nor a mask.

    Args:
        descent: weight of the images to learn.
        ascent: weight of the images to forget in the first step; it falls by a cosine to zero.
        temper: how much more an image to learn counts the less it is known, and how much less one to forget the better
            it is forgotten; 0 weighs all alike. ``lambda`` in the paper.
        saliency: a weight may move in a fast step where its importance to the request is at least this many times that
            to the memory; 0 lets all move. ``gamma`` in the paper.
        clip: largest norm of a fast step's gradient, after masking.
        repairs: steps on the memory after each fast step.
        alpha: weight, in repairs, of the mean squared distance to the stored logits, as in DER++; 0 leaves plain
            cross-entropy. Logits that were stored before a class was forgotten still speak of it.
        slow: how far the weights follow a round of one fast step and its repairs, in (0, 1]; 1 is all the way.
    """

    epochs: Annotated[int, Field(ge=1)] = 5
    optimizer: Optimizer = SGD(lr=0.01, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = Cosine()
    descent: Annotated[float, Field(gt=0)] = 1.0
    ascent: Annotated[float, Field(ge=0)] = 1.0
    temper: Annotated[float, Field(ge=0)] = 0.5
    saliency: Annotated[float, Field(ge=0)] = 1.0
    clip: Annotated[float, Field(gt=0)] = 7.0
    repairs: Annotated[int, Field(ge=1)] = 3
    alpha: Annotated[float, Field(ge=0)] = 0.0
    slow: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __call__(self, model: nn.Module, request: Request, memory: Memory, *, run: Run) -> nn.Module:
        """Learn and forget at once."""
        first = request.learn or request.forget
        assert first is not None
        repairs = self.repairs if len(memory) else 0
        callbacks: list[Callback] = [Masked(self._masks(model, request, memory, run), self.clip)]
        if self.slow < 1:
            callbacks.append(Follow(self.slow, repairs))
        objective = _Rounds(self, request)
        return self.trained(
            model,
            _marked(first, memory),
            objective=objective,
            companions={_FORGET: request.forget} if objective.companions else {},
            callbacks=callbacks,
            order=Interleaved((len(first), len(memory)), after=repairs),
            run=run,
        )

    def _masks(self, model: nn.Module, request: Request, memory: Memory, run: Run) -> Masks:
        """Of the weights that the request matters more to than the memory."""
        if not self.saliency or not len(memory):
            return {}
        asked = concat(*(part.but(columns={}) for part in (request.learn, request.forget) if part is not None))
        size = min(self.batch_size, len(asked), len(memory))  # importance falls as the batch grows
        of_request, of_memory = (
            importance(model, images, run=run, batch_size=size) for images in (asked, memory.images)
        )
        return balanced_mask(of_request, of_memory, self.saliency)


def adaptive_descent(logits: Tensor, y: Tensor, temper: float) -> Tensor:
    """A weighted mean of the samples' losses, whose weights rise with the loss: ``loss ** temper``.

    With `temper` 0 it is the mean cross-entropy.
    """
    losses = F.cross_entropy(logits, y, reduction="none")
    weights = losses.detach() ** temper + 1e-15
    return (weights / weights.sum() * losses).sum()


class _Rounds(Objective):
    """Descent and scaled ascent for a batch of the request, the repair's loss for one of the memory."""

    def __init__(self, method: UGCLU, request: Request):
        self.method, self.learns = method, request.learn is not None
        self.columns = (_RECALLED, LOGITS) if method.alpha else (_RECALLED,)  # type: ignore[misc]
        self.companions = (_FORGET,) if self.learns and request.forget is not None else ()  # type: ignore[misc]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        repair = bool(step.columns[_RECALLED].any())
        step.memory[FAST] = not repair
        logits = step.seen(model(x))
        if repair:
            loss = F.cross_entropy(logits, y)
            return loss + self.method.alpha * F.mse_loss(logits, step.columns[LOGITS]) if self.method.alpha else loss
        if not self.learns:
            return self._ascent(logits, y, step)
        loss = self.method.descent * adaptive_descent(logits, y, self.method.temper)
        if self.companions:
            forget = step.companions[_FORGET]
            loss = loss + self._ascent(model(forget.x).float(), forget.y, step)
        return loss

    def _ascent(self, logits: Tensor, y: Tensor, step: Step) -> Tensor:
        scale = self.method.ascent * (1 + math.cos(math.pi * step.progress)) / 2
        return scale * adaptive_ascent(logits, y, self.method.temper)

    def __str__(self) -> str:
        return f"{self.method}, {'learning' if self.learns else 'forgetting'}"


def _marked(first: Images, memory: Memory) -> Images:
    """The images of the request, then those of the memory, marked and with their logits."""
    parts = []
    for images, recalled in ((first, False), (memory.images, True)):
        logits = memory.logits if recalled else torch.zeros(len(first), memory.logits.shape[1])
        parts.append(images.but(columns={_RECALLED: torch.full((len(images),), recalled), LOGITS: logits}))
    return concat(*parts, name=first.name)
