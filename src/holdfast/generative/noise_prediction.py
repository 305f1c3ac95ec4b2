"""The loss that diffusion models learn by: find the noise that was added to an image.

A time and noise are drawn for each image, and the network is asked what was added. For a share of the images it is told
nothing of what they show, so that it learns both, and guidance can tell one from the other.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, algorithm 1 and equation 14; told
nothing by chance: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.generative.diffusion import Diffusion
from holdfast.methods import Objective, Paper
from holdfast.training import Step

__all__ = ["NoisePrediction", "drawn", "dropped"]


@dataclass(frozen=True, kw_only=True)
class NoisePrediction(
    Objective,
    id="noise-prediction",
    title="Noise prediction",
    paper=Paper(title="Denoising Diffusion Probabilistic Models", arxiv="2006.11239", venue="NeurIPS", year=2020),
):
    """The mean squared error of what a `Diffusion` predicts, at times and with noise drawn for each image.

    What the model is told stands in the column ``context`` of the training set: labels, or the tokens of captions; a
    model that is told nothing has zeros there.

    Args:
        drop: share of the images of which the model is told nothing.
    """

    logits: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("context",)

    drop: Annotated[float, Field(ge=0, le=1)] = 0.1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of a batch of images in [0, 1].

        Raises:
            UserError: the model is no `Diffusion`.
        """
        bare = step.model
        if not isinstance(bare, Diffusion):
            raise UserError(f"{self.id}: it trains a holdfast.generative.Diffusion, got {type(bare).__name__}.")
        x0 = bare.encode(x)
        t, noise = drawn(x0, bare, step.rng("noise"))
        context = dropped(bare, step.columns["context"], self.drop, step.rng("drop"))
        target = bare.schedule.target(x0, t, noise, bare.predicts)
        return (model(bare.schedule.diffuse(x0, t, noise), t, context) - target).square().mean()


def drawn(x0: Tensor, model: Diffusion, rng: torch.Generator) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """A time from 1 to T and standard normal noise for each image, on its device."""
    t = torch.randint(1, model.schedule.steps + 1, (len(x0),), generator=rng)
    noise = torch.randn(x0.shape, generator=rng)
    return t.to(x0.device), noise.to(x0)


def dropped(model: Diffusion, context: Tensor, share: float, rng: torch.Generator) -> Tensor | None:
    """What the model is told, replaced by nothing for each image with probability `share`."""
    nothing = model.nothing(len(context))
    if nothing is None:
        return None
    lost = torch.rand(len(context), generator=rng) < share
    return torch.where(lost.to(context.device).view(-1, *[1] * (context.ndim - 1)), nothing, context)
