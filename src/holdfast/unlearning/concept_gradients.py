"""Gradients of a diffusion model's denoising error on pictures, which tell the weights that these matter to."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.data import Images
from holdfast.generative import Diffusion, guided
from holdfast.run import Run
from holdfast.unlearning.concept_tuning import Weights, antithetic, trainable
from holdfast.unlearning.gradients import Gradients

__all__ = ["denoising_gradients", "fisher"]


def denoising_gradients(
    model: Diffusion,
    images: Images,
    *,
    weights: Weights = "all",
    batch_size: int = 128,
    guidance: float = 1.0,
    run: Run,
) -> Iterator[tuple[Gradients, int]]:
    """The gradient of each batch's denoising error, summed over pixels, and the batch's size.

    Args:
        model: left as it was; in evaluation mode here.
        images: whose classes are what the model is told of them.
        weights: with respect to which.
        batch_size: images per gradient; their times mirror each other.
        guidance: of the prediction; 1 is the model's own.
        run: device, order, times and noise.
    """
    twin, chosen, contexts = _lent(model, images, weights, run)
    rng = run.rng("denoising gradients")
    order = torch.randperm(len(images), generator=rng)
    for x, y in images.select(order).batches(batch_size, run.torch_device):
        x0 = twin.encode(x)
        t = antithetic(len(x), twin.schedule.steps, rng).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        found = guided(twin, twin.schedule.diffuse(x0, t, noise), t, contexts[y], guidance)
        error = (found - twin.schedule.target(x0, t, noise, twin.predicts)).square().flatten(1).sum(1).mean()
        yield _gradients(error, chosen), len(x)


def fisher(
    model: Diffusion, images: Images, *, weights: Weights = "all", times: int | None = None, chunk: int = 50, run: Run
) -> Gradients:
    """The diagonal of the Fisher information: for each picture the squared gradient of its whole loss, averaged.

    A picture's loss is the sum of its errors, over all pixels and over all times. Its gradient is squared as a whole,
    for the square of a sum is not the sum of squares.

    Args:
        model, images, weights, run: see `denoising_gradients`.
        times: visit only so many, at equal distances, and scale the sum up; ``None`` visits all.
        chunk: times per pass.
    """
    twin, chosen, contexts = _lent(model, images, weights, run)
    total = twin.schedule.steps
    visited = torch.linspace(1, total, min(times or total, total)).round().long().unique()
    information = {name: torch.zeros_like(p) for name, p in chosen.items()}
    with run.track(len(images), "fisher information") as ticker:
        for number, (x, y) in enumerate(images.batches(1, run.torch_device)):
            rng = run.rng("fisher", number)
            x0, gradient = twin.encode(x), dict.fromkeys(chosen, torch.zeros((), device=x.device))
            for part in visited.split(chunk):
                t = part.to(x0.device)
                noise = torch.randn(len(part), *x0.shape[1:], generator=rng).to(x0)
                context = contexts[y].expand(len(part), *contexts.shape[1:])
                many = x0.expand(len(part), -1, -1, -1)
                loss = twin.errors(many, t, noise, context).sum() * x0[0].numel() * (total / len(visited))
                for name, piece in _gradients(loss, chosen).items():
                    gradient[name] = gradient[name] + piece
            for name, whole in gradient.items():
                information[name] += whole.square() / len(images)
            ticker.advance()
    return information


def _lent(model: Diffusion, images: Images, weights: Weights, run: Run) -> tuple[Diffusion, Gradients, Tensor]:
    """A copy in evaluation mode, its weights in question, and what it is told of each class."""
    twin = copy.deepcopy(model).to(run.torch_device).eval()
    chosen: Gradients = dict(trainable(twin, weights))
    return twin, chosen, twin.context(images.classes)


def _gradients(loss: Tensor, chosen: Gradients) -> Gradients:
    found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    pairs = zip(chosen.items(), found, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}
