"""SFR-on: forget in the curvature of what is retained, by fast forgetting steps between repairing ones.

The steepest way down to the retrained model, measured on the retained images' own terms, is an ascent on the forget set
that is weighted sample by sample, preconditioned by the curvature of the retained loss and confined to the weights that
matter more to the forget set than to the rest. The curvature is never formed: an ascent followed by several descents on
retained images comes out where it would lead.

Huang et al., "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement", NeurIPS 2024,
arXiv:2409.19732, section 4.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.compression.masks import Masks
from holdfast.data import Images
from holdfast.methods import Callback, Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, Alternating, Cosine, Optimizer, Schedule, Step
from holdfast.unlearning.fast_slow import FAST, Follow, Masked
from holdfast.unlearning.fine_tuning import FORGET, FineTuning, grouped
from holdfast.unlearning.ft import FT
from holdfast.unlearning.gradients import Gradients, importance

__all__ = ["SFRon", "adaptive_ascent", "balanced_mask"]


@dataclass(frozen=True, kw_only=True)
class SFRon(
    FineTuning,
    id="sfron",
    title="SFR-on: saliency forgetting in the remain-preserving manifold online",
    paper=Paper(
        title="Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement",
        arxiv="2409.19732",
        venue="NeurIPS",
        year=2024,
    ),
):
    """Adaptive ascent on the forget set, through a balanced saliency mask, before every few descents on the rest.

    The ascent's weight falls by a cosine to zero. One optimizer takes both kinds of steps, and its momentum carries
    over. The paper counts steps, 1,500 of 128 images on CIFAR-10, where this counts epochs of the retained images.

    Args:
        ascent: weight of the ascent in the first step; 0 leaves fine-tuning on the retained images.
        every: descents between two ascents.
        temper: how much less a sample counts the better it is forgotten; 0 weighs all alike. ``lambda`` in the paper.
        saliency: a weight may move in an ascent where the forget set's importance is at least this many times that of
            the retained images; 0 lets all move. ``gamma`` in the paper.
        clip: largest norm of the ascent's gradient, after masking.
        slow: how far the weights follow a descent, together with the ascent before it, in (0, 1]; 1 is all the way.
            ``beta`` in the paper.
    """

    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = SGD(lr=0.01, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = Cosine()
    ascent: Annotated[float, Field(ge=0)] = 25.0
    every: Annotated[int, Field(ge=1)] = 5
    temper: Annotated[float, Field(ge=0)] = 0.5
    saliency: Annotated[float, Field(ge=0)] = 1.0
    clip: Annotated[float, Field(gt=0)] = 7.0
    slow: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        images = grouped(forget, retain)
        if not self.ascent:
            return self.tuned(model, retain, name=FT.id, run=run)
        masks: Masks = {}
        if self.saliency:
            of_forget, of_retain = (
                importance(model, part, run=run, batch_size=self.batch_size) for part in (forget, retain)
            )
            masks = balanced_mask(of_forget, of_retain, self.saliency)
        callbacks: list[Callback] = [Masked(masks, self.clip)]
        if self.slow < 1:
            callbacks.append(Follow(self.slow))
        return self.tuned(
            model,
            images,
            objective=_UpAndDown(self),
            callbacks=callbacks,
            order=Alternating((len(forget), len(retain)), every=self.every),
            run=run,
        )


def balanced_mask(of_forget: Mapping[str, Tensor], of_retain: Gradients, least: float) -> Masks:
    """True where the forget set's importance is at least `least` times the retained images'; also where both are 0."""
    return {name: (value + 1e-15) / (of_retain[name] + 1e-15) >= least for name, value in of_forget.items()}


def adaptive_ascent(logits: Tensor, y: Tensor, temper: float) -> Tensor:
    """Minus a weighted mean of the samples' losses, whose weights fall with the loss: ``loss ** -temper``.

    With `temper` 0 it is minus the mean cross-entropy; with 1 its value is constant, and only its gradient counts.
    """
    losses = F.cross_entropy(logits, y, reduction="none")
    weights = 1 / (losses.detach() ** temper + 1e-15)
    return -(weights / weights.sum() * losses).sum()


class _UpAndDown(Objective):
    """The scaled adaptive ascent for a batch to forget, plain cross-entropy for another."""

    columns = (FORGET,)

    def __init__(self, method: SFRon):
        self.method = method

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        forgetting = bool(step.columns[FORGET].any())
        step.memory[FAST] = forgetting
        if not forgetting:
            return F.cross_entropy(step.seen(model(x)), y)
        scale = self.method.ascent * (1 + math.cos(math.pi * step.progress)) / 2
        return scale * adaptive_ascent(step.seen(model(x)), y, self.method.temper)

    def __str__(self) -> str:
        return str(self.method)
