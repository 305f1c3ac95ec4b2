"""SFR-on for models that make images: fast forgetting steps, each repaired by a step on pictures to be kept.

In turn the model ascends on its denoising error on pictures of the concept, weighted picture by picture and confined
to the weights that matter more to the concept than to the rest, and descends on that of pictures to be kept. One
optimizer takes both kinds of steps.

Huang et al., "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement", NeurIPS 2024,
arXiv:2409.19732, section 4.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.compression.masks import Masks
from holdfast.data import Images, to_float
from holdfast.generative import Diffusion
from holdfast.generative.noise_prediction import drawn, dropped
from holdfast.methods import Callback, Objective, Paper
from holdfast.run import Run
from holdfast.training import Adam, Optimizer, Step
from holdfast.unlearning.concept_gradients import denoising_gradients
from holdfast.unlearning.concept_pictures import OwnPictures
from holdfast.unlearning.concept_tuning import Rounds, Weights, bare, errors
from holdfast.unlearning.concepts import Concept
from holdfast.unlearning.fine_tuning import FORGET
from holdfast.unlearning.gradients import Gradients
from holdfast.unlearning.sfron import balanced_mask

__all__ = ["SFRonDiffusion", "adaptive_errors"]

_FORGETTING = "sfron-diffusion.forgetting"  # whether the gradient at hand is that of a forgetting step


@dataclass(frozen=True, kw_only=True)
class SFRonDiffusion(
    OwnPictures,
    id="sfron-diffusion",
    title="SFR-on for diffusion models",
    paper=Paper(
        title="Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement",
        arxiv="2409.19732",
        venue="NeurIPS",
        year=2024,
    ),
):
    """Adaptive ascent on the concept, through a balanced saliency mask, and a descent on the rest after each.

    The ascent's weight falls by a cosine to zero. The defaults are those for images of 32 pixels.

    Args:
        steps: rounds of one ascent and one descent each.
        ascent: weight of the ascent in the first round.
        temper: how much less a picture counts the worse it is denoised already; 0 weighs all alike. ``lambda`` in the
            paper.
        saliency: a weight may move in an ascent where its importance to the concept is at least this many times that to
            the rest; 0 lets all move. ``gamma`` in the paper.
        drop: share of the pictures to be kept of which the model is told nothing.
    """

    steps: Annotated[int, Field(ge=1)] = 150
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = Adam(lr=1e-4)
    weights: Weights = "all"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    ascent: Annotated[float, Field(ge=0)] = 10.0
    temper: Annotated[float, Field(ge=0)] = 0.5
    saliency: Annotated[float, Field(ge=0)] = 1.0
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model does not know a word, or nothing is said of what is to be kept.
        """
        original, concept = self.begin(model, concept, run=run)
        child = run.child(f"{self.id} pictures")
        kept = self.to_keep(original, concept, run=child)
        forget = self.of_concept(original, concept, run=child)
        masks: Masks = {}
        if self.saliency:
            of_forget, of_kept = (self._importance(model, part, run=run) for part in (forget, kept))
            masks = balanced_mask(of_forget, of_kept, self.saliency)
        images = _side_by_side(forget, kept)
        return self.tuned(
            model,
            images,
            _UpAndDown(self, original.context(images.classes)),
            order=Rounds((len(forget), len(kept)), self.steps),
            callbacks=[_Mask(masks)],
            run=run,
        )

    def _importance(self, model: Diffusion, images: Images, *, run: Run) -> Gradients:
        """The mean over batches of their squared gradients."""
        total: Gradients = {}
        batches = 0
        child = run.child(self.id)
        size = self.batch_size
        for gradients, _ in denoising_gradients(model, images, weights=self.weights, batch_size=size, run=child):
            batches += 1
            for name, gradient in gradients.items():
                total[name] = total[name] + gradient.square() if name in total else gradient.square()
        return {name: value / batches for name, value in total.items()}


def adaptive_errors(losses: Float[Tensor, " n"], temper: float) -> Tensor:
    """Minus a weighted mean of losses, whose weights fall with the loss, ``loss ** -temper``, and take no gradient."""
    weights = 1 / (losses.detach() ** temper + 1e-8)
    return -(weights / weights.sum() * losses).sum()


class _UpAndDown(Objective):
    """The scaled adaptive ascent for a batch to forget, the denoising loss for another; both sums over pixels."""

    logits = False
    columns = (FORGET,)

    def __init__(self, method: SFRonDiffusion, contexts: Tensor):
        self.method, self.contexts = method, contexts

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        plain, context = bare(step), self.contexts[y]
        forgetting = bool(step.columns[FORGET].any())
        step.memory[_FORGETTING] = forgetting
        x0 = plain.encode(x)
        if not forgetting:
            told = dropped(plain, context, self.method.drop, step.rng("drop"))
            assert told is not None
            context = told
        losses = errors(model, step, x0, *drawn(x0, plain, step.rng("noise")), context) * x0[0].numel()
        if not forgetting:
            return losses.mean()
        done = (step.index // 2) / self.method.steps
        return self.method.ascent * (1 + math.cos(math.pi * done)) / 2 * adaptive_errors(losses, self.method.temper)

    def __str__(self) -> str:
        return str(self.method)


class _Mask(Callback):
    """Lets a forgetting step's gradient through where the concept matters more."""

    def __init__(self, masks: Mapping[str, Tensor]):
        self.masks = masks

    def __str__(self) -> str:
        return "masked ascent"

    def on_gradient(self, state: Any) -> None:
        if state.memory[_FORGETTING]:
            for name, parameter in state.model.named_parameters():
                if parameter.grad is not None and name in self.masks:
                    parameter.grad.mul_(self.masks[name])


def _side_by_side(forget: Images, kept: Images) -> Images:
    """Both sets in one, those to forget first and marked, each with its own classes."""
    if forget.x.dtype != kept.x.dtype:
        forget, kept = (part.but(x=to_float(part.x)) for part in (forget, kept))
    marked = torch.arange(len(forget) + len(kept)) < len(forget)
    return Images(
        x=torch.cat([forget.x, kept.x]),
        y=torch.cat([forget.y, kept.y + len(forget.classes)]),
        classes=(*forget.classes, *kept.classes),
        columns={FORGET: marked},
        name=f"{forget.name} and {kept.name}",
    )
