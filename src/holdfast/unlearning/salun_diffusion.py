"""SalUn for models that make images: the concept's texts learn what others would show, in salient weights only.

The gradient of the denoising error on pictures of the concept ranks all weights. The upper half may move; with the
rest frozen, the model learns to predict, told the concept, what it predicts itself when it is told something else, and
goes on learning from pictures to be kept.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and
Generation", ICLR 2024, arXiv:2310.12508: its form for models that make images.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.compression.masks import Masks
from holdfast.data import Images
from holdfast.generative import Diffusion
from holdfast.generative.noise_prediction import drawn
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import Adam, Optimizer, Step
from holdfast.unlearning.concept_gradients import denoising_gradients
from holdfast.unlearning.concept_pictures import OwnPictures
from holdfast.unlearning.concept_tuning import Keeping, Weights, bare
from holdfast.unlearning.concepts import Concept
from holdfast.unlearning.gradients import FreezeExcept, Gradients, most_salient

__all__ = ["SalUnDiffusion"]


@dataclass(frozen=True, kw_only=True)
class SalUnDiffusion(
    OwnPictures,
    id="salun-diffusion",
    title="SalUn for diffusion models",
    paper=Paper(
        title="SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification "
        "and Generation",
        arxiv="2310.12508",
        venue="ICLR",
        year=2024,
    ),
):
    """Other concepts' predictions under the concept's name, through salient weights.

    What stands in the concept's place must be said for a model told texts (`Concept.instead`); for classes it is the
    next one. The defaults are those for images of 32 pixels.

    Args:
        share: fraction of the weights that may move, in (0, 1].
        alpha: weight of the denoising loss on pictures to be kept, both losses being means over pixels; 0 leaves it
            out. The authors' 0.001 multiplies a sum over 3,072 pixels.
        drop: share of those pictures of which the model is told nothing.
        saliency_guidance: of the prediction whose error ranks the weights; 8.5 in the paper for Stable Diffusion.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = Adam(lr=1e-4)
    weights: Weights = "all"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    alpha: Annotated[float, Field(ge=0)] = 3.0
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    saliency_guidance: Annotated[float, Field(ge=0)] = 1.0

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model does not know a word, or nothing is said to be drawn in its place, or kept.
        """
        original, concept = self.begin(model, concept, run=run)
        child = run.child(f"{self.id} pictures")
        # Whatever is missing is missed before anything is drawn.
        concept.replaced(original, concept.asked(original))
        companions = {"retained": self.to_keep(original, concept, run=child)} if self.alpha else {}
        forget = self.of_concept(original, concept, run=child)
        instead = original.context(concept.replaced(original, forget.classes))
        callbacks = [] if self.share == 1 else [FreezeExcept(self.salient(model, forget, run=run))]
        objective: Objective = _Instead(self, original.context(forget.classes), instead)
        if companions:
            kept = original.context(companions["retained"].classes)
            objective = Keeping(objective, weight=self.alpha, contexts=kept, drop=self.drop)
        return self.tuned(model, forget, objective, callbacks=callbacks, companions=companions, run=run)

    def salient(self, model: Diffusion, forget: Images, *, run: Run) -> Masks:
        """The weights that matter most to the pictures of the concept: ``round(share * total)`` of those that may move.

        Each batch's gradient is clipped to norm 1, so that none outweighs the others.
        """
        total: Gradients = {}
        for gradients, _ in denoising_gradients(
            model,
            forget,
            weights=self.weights,
            batch_size=self.batch_size,
            guidance=self.saliency_guidance,
            run=run.child(self.id),
        ):
            norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
            for name, gradient in gradients.items():
                clipped = gradient / norm.clamp_min(1)
                total[name] = total[name] + clipped if name in total else clipped
        return most_salient(total, self.share)


class _Instead(Objective):
    """The distance to the model's own prediction for something else."""

    logits = False

    def __init__(self, method: SalUnDiffusion, asked: Tensor, instead: Tensor):
        self.method, self.asked, self.instead = method, asked, instead

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        plain = bare(step)
        x0 = plain.encode(x)
        t, noise = drawn(x0, plain, step.rng("noise"))
        x_t = plain.schedule.diffuse(x0, t, noise)
        with torch.no_grad():
            target = plain(x_t, t, self.instead[y])
        return (model(x_t, t, self.asked[y]) - target).square().mean()

    def __str__(self) -> str:
        return str(self.method)
