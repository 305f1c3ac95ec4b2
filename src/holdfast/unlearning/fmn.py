"""Forget-Me-Not: take the attention off the concept's word.

A picture comes to show what a text names by pixels attending to the word. A few dozen steps lower that attention where
it is computed, in the cross-attention to the concept's tokens. It then goes to the other tokens, as the shares of all
tokens sum to one, so the concept is re-steered rather than erased: fast, and the easiest to get back.

Zhang et al., "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", CVPR Workshops 2024,
arXiv:2303.17591, section 3.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative import Diffusion, Watched, cross_attention, watch_attention
from holdfast.generative.noise_prediction import drawn
from holdfast.methods import Objective, Paper
from holdfast.run import Run
from holdfast.training import AdamW, Optimizer, Step
from holdfast.unlearning.concept_tuning import ConceptTuning, Weights, bare
from holdfast.unlearning.concepts import Concept, as_told

__all__ = ["ForgetMeNot", "attention_on", "places_of"]


@dataclass(frozen=True, kw_only=True)
class ForgetMeNot(
    ConceptTuning,
    id="fmn",
    title="Forget-Me-Not: attention re-steering",
    paper=Paper(
        title="Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models",
        arxiv="2303.17591",
        venue="CVPR Workshops",
        year=2024,
    ),
):
    """A few steps that lower all cross-attention to the concept's tokens.

    It takes the pictures of the concept that it is given; without any it starts from noise alone.
    """

    steps: Annotated[int, Field(ge=1)] = 35
    batch_size: Annotated[int, Field(ge=1)] = 1
    optimizer: Optimizer = AdamW(lr=2e-6, weight_decay=0.01, decay="all")
    weights: Weights = "all"

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model is told no texts, or the concept's name stands in none of its prompts.
        """
        original, concept = self.begin(model, concept, run=run)
        if original.text is None or not cross_attention(original):
            raise UserError(f"{self.id}: it needs a model that is told texts and attends to their words.")
        prompts = concept.asked(original)
        if concept.images is not None:
            images = as_told(original, concept.images, prompts)
        else:
            y = torch.arange(max(len(prompts), self.batch_size)) % len(prompts)
            images = Images(x=torch.zeros(len(y), *original.image_shape), y=y, classes=prompts, name="noise alone")
        places = places_of(original, images.classes, concept.name)
        told = places.any(1)[images.y]
        if not told.any():
            raise UserError(f"{self.id}: the word {concept.name!r} stands in none of the texts of the concept.")
        objective = _Resteer(self, original.context(images.classes), places, pure=concept.images is None)
        return self.tuned(model, images.select(told), objective, run=run)


def places_of(model: Diffusion, prompts: Sequence[str], name: str) -> Bool[Tensor, "n t"]:
    """Where the tokens of a name of one or more words stand in texts, on the model's device."""
    contexts = model.context(prompts)
    places = torch.zeros(contexts.shape, dtype=torch.bool)
    for row, prompt in zip(places, prompts, strict=True):
        for word in name.split():
            row[model.text.tokenizer.places(prompt, word)] = True
    return places.to(contexts.device)


def attention_on(seen: Sequence[Watched], places: Bool[Tensor, "n t"]) -> Float[Tensor, " m"]:
    """The attention of each pixel in each head and layer to each token that is marked, in one row."""
    parts = []
    for watched in seen:
        marked = places[:, None, None, :].expand_as(watched.probabilities)
        parts.append(watched.probabilities[marked])
    return torch.cat(parts)


class _Resteer(Objective):
    """The norm of the attention to the concept."""

    logits = False

    def __init__(self, method: ForgetMeNot, contexts: Tensor, places: Tensor, *, pure: bool):
        self.method, self.contexts, self.places, self.pure = method, contexts, places, pure

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        plain = bare(step)
        x0 = plain.encode(x)
        t, noise = drawn(x0, plain, step.rng("noise"))
        x_t = noise if self.pure else plain.schedule.diffuse(x0, t, noise)
        with watch_attention(plain) as seen:
            model(x_t, t, self.contexts[y])
        return attention_on(seen, self.places[y]).norm()

    def __str__(self) -> str:
        return f"{self.method} on {'noise' if self.pure else 'pictures'}"
