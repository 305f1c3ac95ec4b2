"""MiM-MU: make what the model draws independent of the concept's text, and nothing else.

A text and an image have no mutual information where the model finds the same noise with the text as without it. So the
unlearned model's prediction for the concept is brought to the original model's prediction for no text at all. The
original stays: were the moving model's own prediction the target, both could drift together. No other concept is
trained on; preservation is meant to come from how little has to move.

Cheng et al., "Compensation-free Machine Unlearning in Text-to-Image Diffusion Models by Eliminating the Mutual
Information", 2026, arXiv:2603.00992. No code was found and the weights of the loss are not certain; the two losses are
derived here from the paper's idea and the standard identity between mutual information and denoising errors. The first
differs from `esd` with eta = 1 only in the noisy images, which are diffused pictures here and half-drawn ones there;
with a moving average of the model in the place of the original it would be safe self-distillation.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.generative import Diffusion
from holdfast.generative.noise_prediction import drawn
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import Adam, Optimizer, Step
from holdfast.unlearning.concept_pictures import OwnPictures
from holdfast.unlearning.concept_tuning import Keeping, Weights, bare
from holdfast.unlearning.concepts import Concept

__all__ = ["MiMMU", "against_the_concept"]


@dataclass(frozen=True, kw_only=True)
class MiMMU(
    OwnPictures,
    id="mim-mu",
    title="MiM-MU: unlearning by eliminating the mutual information",
    paper=Paper(
        title="Compensation-free Machine Unlearning in Text-to-Image Diffusion Models by Eliminating the Mutual "
        "Information",
        arxiv="2603.00992",
        year=2026,
    ),
):
    """Bring the prediction for the concept to the original's prediction for no text.

    The defaults are thirty passes over two hundred pictures.

    Args:
        mode: ``"score-match"`` compares predictions; ``"jacobian-free"`` moves the images that the model finds under
            the noise to where the original holds the concept less likely, without a gradient through the original.
        compensation: weight of a denoising loss on pictures to be kept; the method is to do without, with ``none``.
    """

    steps: Annotated[int, Field(ge=1)] = 1500
    batch_size: Annotated[int, Field(ge=1)] = 4
    optimizer: Optimizer = Adam(lr=1e-5)
    weights: Weights = "cross-attention"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    samples: Annotated[int, Field(ge=1)] = 200
    mode: Literal["score-match", "jacobian-free"] = "score-match"
    compensation: Annotated[float, Field(gt=0)] | None = None

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model does not know a word, or there is nothing to compensate with.
        """
        original, concept = self.begin(model, concept, run=run)
        child = run.child(f"{self.id} pictures")
        kept = None if self.compensation is None else self.to_keep(original, concept, run=child)
        images = self.of_concept(original, concept, run=child)
        objective: Objective = _Untold(self, original, original.context(images.classes))
        if self.compensation is None or kept is None:
            return self.tuned(model, images, objective, run=run)
        objective = Keeping(objective, weight=self.compensation, contexts=original.context(kept.classes), drop=0.1)
        return self.tuned(model, images, objective, companions={"retained": kept}, run=run)


def against_the_concept(original: Diffusion, x0: Tensor, t: Tensor, noise: Tensor, context: Tensor) -> Tensor:
    """A loss whose gradient moves images to where the original holds what it is told less likely of them.

    At noise level t the gradient of log p(x | c) - log p(x) is a negative multiple of the difference between the noise
    found with c and without. Descending on minus that difference therefore descends on the log-ratio.

    Args:
        original: gives the noise.
        x0: images in [-1, 1], or latents, through which the gradient goes.
        t, noise: with which they are diffused again.
        context: c.
    """
    with torch.no_grad():
        x_t = original.schedule.diffuse(x0, t, noise)
        untold = original.noise(x_t, t, original.nothing(len(x_t)))
        direction = untold - original.noise(x_t, t, context)
    return (x0 * direction).flatten(1).mean(1).mean()


class _Untold(Objective):
    """The distance to the prediction for nothing, or the images' move against the concept."""

    logits = False

    def __init__(self, method: MiMMU, original: Diffusion, contexts: Tensor):
        self.method, self.original, self.contexts = method, original, contexts

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        plain, context = bare(step), self.contexts[y]
        x0 = plain.encode(x)
        t, noise = drawn(x0, plain, step.rng("noise"))
        x_t = plain.schedule.diffuse(x0, t, noise)
        if self.method.mode == "jacobian-free":
            found = plain.schedule.estimate(model(x_t, t, context), x_t, t, plain.predicts).x0
            return against_the_concept(self.original, found, *drawn(found, plain, step.rng("again")), context)
        with torch.no_grad():
            target = self.original(x_t, t, self.original.nothing(len(x_t)))
        return (model(x_t, t, context) - target).square().mean()

    def __str__(self) -> str:
        return str(self.method)
