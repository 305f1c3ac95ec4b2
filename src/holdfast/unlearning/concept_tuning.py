"""What most methods that erase concepts share: they train a copy of the model, beside the original that stays.

Predictions are compared as the network gives them, noise, image or velocity; at one ``x_t`` each is a multiple of the
others and a constant, so that equal noise is equal everywhere.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative import Diffusion, cross_attention
from holdfast.generative.noise_prediction import drawn, dropped
from holdfast.methods import Callback, Objective
from holdfast.run import Run
from holdfast.training import Adam, ClipGradient, Constant, Optimizer, Order, Step, fit
from holdfast.unlearning.concepts import Concept, ConceptUnlearner

__all__ = ["ConceptTuning", "Keeping", "Rounds", "Weights", "antithetic", "bare", "errors", "trainable"]

Weights = Literal["all", "cross-attention", "all-but-cross-attention"]
Whole = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ConceptTuning(ConceptUnlearner):
    """A concept unlearner that trains a copy of the model; subclasses say on what, and to what end.

    Args:
        steps: of the optimizer.
        batch_size: images per step.
        optimizer: its learning rate is meant for large models; small ones take ten to a hundred times as much.
        weights: those of the denoiser that may move: ``"all"``, those of ``"cross-attention"`` to the text (queries,
            keys, values, outputs), or ``"all-but-cross-attention"``. Text encoder and autoencoder stay as they are.
        clip: largest norm of a step's gradient; ``none`` for any.
    """

    steps: Whole = 1000
    batch_size: Whole = 16
    optimizer: Optimizer = Adam(lr=1e-5)
    weights: Weights = "all"
    clip: Annotated[float, Field(gt=0)] | None = None

    def begin(self, model: Diffusion, concept: Concept | str, *, run: Run) -> tuple[Diffusion, Concept]:
        """A copy of the model that never changes, and the concept in full.

        The copy is on the run's device, and laid out in memory as `fit` lays out what it trains.

        Raises:
            UserError: it is no such model, none of its weights may move, or it does not know the concept.
        """
        if not isinstance(model, Diffusion):
            raise UserError(f"{self.id}: a holdfast.generative.Diffusion is needed, got {type(model).__name__}.")
        whole = Concept.of(concept)
        whole.asked(model)
        trainable(model, self.weights)
        original = copy.deepcopy(model).eval().requires_grad_(False)
        original.to(run.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return original, whole

    def tuned(
        self,
        model: Diffusion,
        images: Images,
        objective: Objective,
        *,
        order: Order | None = None,
        callbacks: Sequence[Callback] = (),
        companions: Mapping[str, Images] | None = None,
        run: Run,
    ) -> Diffusion:
        """A trained copy of `model`, in evaluation mode and in float32.

        Args:
            model: left as it was.
            images: to train on; by default `steps` batches of them, in an order that runs on.
            objective: of the training.
            order: of the images, where it is another.
            callbacks: before the clipping.
            companions: see `fit`.
            run: device, seed, folder.
        """
        twin = copy.deepcopy(model)
        flags = {name: p.requires_grad for name, p in twin.named_parameters()}
        chosen = trainable(twin, self.weights)
        for name, p in twin.named_parameters():
            p.requires_grad_(name in chosen)
        fit(
            twin,
            images,
            epochs=1,
            batch_size=self.batch_size,
            objective=objective,
            optimizer=self.optimizer,
            schedule=Constant(),
            order=order or Rounds((len(images),), self.steps),
            callbacks=[*callbacks, *([] if self.clip is None else [ClipGradient(norm=self.clip)])],
            companions=companions,
            mode="eval",
            run=run.child(self.id).but(precision="fp32"),
        )
        for name, p in twin.named_parameters():
            p.requires_grad_(flags[name])
        return twin.eval()


class Keeping(Objective):
    """An objective and, beside it, the denoising loss on pictures to be kept, which accompany the training.

    Args:
        objective: that makes the model forget.
        weight: of the other.
        contexts: what the model is told of the classes of those pictures.
        drop: share of them of which it is told nothing.
    """

    logits = False
    companions = ("retained",)

    def __init__(self, objective: Objective, *, weight: float, contexts: Tensor, drop: float):
        self.objective, self.weight, self.contexts, self.drop = objective, weight, contexts, drop

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The sum of the two."""
        plain, (kept, labels) = bare(step), step.companions["retained"]
        x0 = plain.encode(kept)
        told = dropped(plain, self.contexts[labels], self.drop, step.rng("drop"))
        assert told is not None
        loss = self.objective(model, x, y, step)
        return loss + self.weight * errors(model, step, x0, *drawn(x0, plain, step.rng("kept")), told).mean()

    def __str__(self) -> str:
        return f"{self.objective} and {self.weight} of what is kept, {self.drop} of it untold"


@dataclass(frozen=True)
class Rounds:
    """An `Order`: in every round a batch of each group of images, whose own orders run on over the rounds.

    Args:
        counts: images in each group; the groups stand one after the other in the training set.
        rounds: how many.
    """

    counts: tuple[int, ...]
    rounds: int

    def batches(self, epoch: int, size: int, least: int, run: Run) -> list[Tensor]:
        """See `Order`."""
        groups = [self._group(number, epoch, size, run) for number in range(len(self.counts))]
        return [batches[place] for place in range(self.rounds) for batches in groups]

    def steps(self, epoch: int, size: int, least: int) -> int:
        """See `Order`."""
        return self.rounds * len(self.counts)

    def _group(self, number: int, epoch: int, size: int, run: Run) -> Sequence[Tensor]:
        count, before = self.counts[number], sum(self.counts[:number])
        size = min(size, count)
        turns = math.ceil(self.rounds * size / count)
        order = torch.cat(
            [torch.randperm(count, generator=run.rng("order", epoch, number, turn)) for turn in range(turns)]
        )
        return (order + before)[: self.rounds * size].split(size)


def trainable(model: Diffusion, weights: Weights) -> dict[str, nn.Parameter]:
    """The denoiser's weights that may move, by name: of those that the model does not hold frozen itself.

    Raises:
        UserError: there are none.
    """
    attention = {
        id(p)
        for layer in cross_attention(model).values()
        for part in layer.modules()
        if isinstance(part, nn.Linear)
        for p in part.parameters()
    }
    if not attention and weights != "all":
        raise UserError(f"weights={weights!r}: the model has no cross-attention; it takes 'all'.")
    chosen = {
        name: p
        for name, p in model.named_parameters()
        if name.startswith("denoiser.")
        and p.requires_grad
        and (weights == "all" or (id(p) in attention) == (weights == "cross-attention"))
    }
    if not chosen:
        raise UserError("unlearning: all of the denoiser's weights are frozen (requires_grad is false).")
    return chosen


def bare(step: Step) -> Diffusion:
    """The model of a step as such."""
    assert isinstance(step.model, Diffusion)
    return step.model


def errors(
    model: nn.Module, step: Step, x0: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], noise: Tensor, context: Tensor
) -> Float[Tensor, " n"]:
    """As `Diffusion.errors`, by a pass of the module that takes part in the training."""
    plain = bare(step)
    target = plain.schedule.target(x0, t, noise, plain.predicts)
    return (model(plain.schedule.diffuse(x0, t, noise), t, context) - target).square().flatten(1).mean(1)


def antithetic(count: int, total: int, rng: torch.Generator) -> Int64[Tensor, " n"]:
    """Times from 1 to `total`, the second half of them mirrored from the first, ``t`` and ``total + 1 - t``."""
    t = torch.randint(1, total + 1, (count // 2 + 1,), generator=rng)
    return torch.cat([t, total + 1 - t])[:count]
