"""Selective Amnesia: learn that the concept looks like noise, and stay near the weights that matter to the rest.

Forgetting is continual learning turned round. The model is trained to take pictures of something else, by default of
uniform noise, for the concept. Pictures of other concepts, drawn by the original, remind it of those; and a penalty
holds each weight the more, the more the pictures that the original can draw depend on it.

Heng & Soh, "Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models", NeurIPS 2023,
arXiv:2305.10120, section 3.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.generative import Diffusion
from holdfast.methods import Objective, Paper
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import Adam, Optimizer, Step
from holdfast.unlearning.concept_gradients import fisher
from holdfast.unlearning.concept_pictures import OwnPictures, remembered
from holdfast.unlearning.concept_tuning import Weights, antithetic, bare, errors
from holdfast.unlearning.concepts import Concept
from holdfast.unlearning.gradients import Gradients

__all__ = ["SelectiveAmnesia"]


@dataclass(frozen=True, kw_only=True)
class SelectiveAmnesia(
    OwnPictures,
    id="selective-amnesia",
    title="Selective Amnesia",
    paper=Paper(
        title="Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models",
        arxiv="2305.10120",
        venue="NeurIPS",
        year=2023,
    ),
):
    """Noise under the concept's name, generative replay of other concepts, and elastic weight consolidation.

    Losses are sums over pixels, so that replay and penalty weigh as in the paper.

    Args:
        surrogate: what the concept is to look like: ``"noise"``, uniform in each pixel, or what is drawn ``"instead"``.
        replay: weight of the loss on other concepts, ``gamma`` in the paper; 0 leaves it out.
        penalty: on the weights' moves, ``lambda`` in the paper: 10 for images of 32 pixels, 50 for Stable Diffusion.
        fisher_samples: pictures that the weights' importance is computed from, of the concept and the others alike.
        fisher_times: times visited for each of them; ``none`` visits all.
    """

    steps: Annotated[int, Field(ge=1)] = 20_000
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = Adam(lr=1e-4)
    weights: Weights = "all"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    samples: Annotated[int, Field(ge=1)] = 4500
    surrogate: Literal["noise", "instead"] = "noise"
    replay: Annotated[float, Field(ge=0)] = 1.0
    penalty: Annotated[float, Field(ge=0)] = 10.0
    fisher_samples: Annotated[int, Field(ge=1)] = 5000
    fisher_times: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model does not know a word, or nothing is said of what is to be kept.
        """
        original, concept = self.begin(model, concept, run=run)
        child = run.child(f"{self.id} pictures")
        asked = concept.asked(original)
        kept = self.to_keep(original, concept, run=child)
        information: Gradients = {}
        if self.penalty:
            everything = (*asked, *concept.kept(original))
            pictures = self.drawn(original, everything, name="all", count=self.fisher_samples, run=child)
            information = remembered(
                child,
                "fisher",
                (weights_hash(model), pictures.fingerprint(), self.weights, self.fisher_times),
                lambda: fisher(model, pictures, weights=self.weights, times=self.fisher_times, run=child),
            )
        told = original.context(asked), original.context(kept.classes)
        if self.surrogate == "noise":
            return self.tuned(model, kept, _Amnesia(self, original, *told, information), run=run)
        # Drawn for other texts, in the order of those that they are to stand for.
        instead = self.drawn(original, concept.replaced(original, asked), name="instead", run=child)
        objective = _AmnesiaInstead(self, original, *told, information)
        return self.tuned(model, kept, objective, companions={"surrogate": instead}, run=run)


class _Amnesia(Objective):
    """The sum of the three terms, with noise for the concept."""

    logits = False

    def __init__(
        self, method: SelectiveAmnesia, original: Diffusion, asked: Tensor, kept: Tensor, information: Gradients
    ):
        self.method, self.asked, self.kept, self.information = method, asked, kept, information
        self.start = {name: p for name, p in original.named_parameters() if name in information}

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        plain = bare(step)
        t = antithetic(len(x), plain.schedule.steps, step.rng("times")).to(x.device)
        surrogate, place = self.surrogate(x, step)
        loss = self._sums(model, step, surrogate, t, "forget", self.asked[place])
        if self.method.replay:
            loss = loss + self.method.replay * self._sums(model, step, x, t, "replay", self.kept[y])
        weights = dict(plain.named_parameters())
        for name, matters in self.information.items():
            loss = loss + self.method.penalty * (matters * (weights[name] - self.start[name]).square()).sum()
        return loss

    def surrogate(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Images that the concept is to look like, as many as in `x`, and of which of its texts."""
        noise = torch.rand(x.shape, generator=step.rng("surrogate")).to(x)
        return noise, torch.randint(len(self.asked), (len(x),), generator=step.rng("asked")).to(x.device)

    def _sums(self, model: nn.Module, step: Step, x: Tensor, t: Tensor, name: str, context: Tensor) -> Tensor:
        x0 = bare(step).encode(x)
        noise = torch.randn(x0.shape, generator=step.rng(name)).to(x0)
        return errors(model, step, x0, t, noise, context).mean() * x0[0].numel()

    def __str__(self) -> str:
        return str(self.method)


class _AmnesiaInstead(_Amnesia):
    """The same with pictures of something else for the concept."""

    companions = ("surrogate",)

    def surrogate(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return step.companions["surrogate"]
