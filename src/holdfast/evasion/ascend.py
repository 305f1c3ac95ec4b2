"""The inner maximiser of adversarial training: a few steps up the loss, for every sample, and nothing else.

An attack that measures robustness drops the samples that have fallen and returns the best point it saw. Training wants
neither: it wants the last iterate of every sample, from the fewest kernels. Weights get no gradients here (autograd is
asked for the input's only), so ``.grad`` fields are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from holdfast.evasion import balls
from holdfast.evasion.losses import best_other
from holdfast.models import Replays

__all__ = ["ascend", "cross_entropy_loss", "kl_from", "margin_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each sample's true class."""
    return F.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The best other logit minus the true class's."""
    return best_other(logits, y) - logits.gather(1, y[:, None]).squeeze(1)


def kl_from(clean_logits: Float[Tensor, "n k"]) -> Loss:
    """The loss ``KL(softmax(clean) || softmax(logits))`` that TRADES and its relatives maximise."""
    reference = clean_logits.detach().float().log_softmax(1)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), reference, reduction="none", log_target=True).sum(1)

    return loss


_LOSSES: dict[str, Loss] = {"ce": cross_entropy_loss, "margin": margin_loss}


def ascend(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n c h w"],
    y: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    norm: balls.Norm = "linf",
    loss: Literal["ce", "margin"] | Loss = "ce",
    start: Literal["uniform", "centre"] | Tensor = "uniform",
    generator: torch.Generator | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    replays: Replays | None = None,
) -> Float[Tensor, "n c h w"]:
    """Climb the loss from `x` within the ball of radius `eps` and the box [0, 1]; return the last iterate.

    The model runs in the mode and memory format in which the caller has it: put it in eval mode where that is wanted.
    In train mode batch normalisation sees every iterate.

    Args:
        model: images to logits; a module or any differentiable function.
        x: float32 images in [0, 1].
        y: labels, handed to the loss.
        eps: radius of the ball, in pixel units.
        step: length of a step, in the same norm and units.
        steps: how many; 0 returns the start.
        norm: of the ball and of the steps.
        loss: ``"ce"``, ``"margin"``, or a function of (float32 logits, y) to one loss per sample, e.g. `kl_from`.
        start: ``"uniform"`` draws it from the ball, ``"centre"`` is `x`, or the starting points themselves.
        generator: of the random start, on the CPU; required by ``start="uniform"``, e.g. ``run.rng("attack", step)``.
        autocast: makes the context of the model's passes, e.g. ``run.autocast``.
        replays: recordings to use, of a training in which nothing about the model changes but its weights in place,
            with the model in eval mode and a loss given by name.

    Returns:
        A new tensor like `x`, detached.
    """
    value = _LOSSES[loss] if isinstance(loss, str) else loss
    with torch.no_grad():
        at = _start(x, eps, norm, start, generator)

    def slope(at: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        at = at.detach().requires_grad_()
        with torch.enable_grad(), autocast():
            total = value(model(at).float(), y).sum()
        return torch.autograd.grad(total, at)

    kind = ("slope", id(model), loss)
    for _ in range(steps):
        (gradient,) = slope(at, y) if replays is None else replays(kind, slope, at, y)
        with torch.no_grad():
            at = balls.project(at.detach().add_(balls.steepest(gradient, norm), alpha=step), x, eps, norm)
    return at.detach()


def _start(x: Tensor, eps: float, norm: balls.Norm, start: str | Tensor, generator: torch.Generator | None) -> Tensor:
    if isinstance(start, Tensor):
        return balls.project(start.detach().clone(), x, eps, norm)
    if start == "centre":
        return x.detach().clone()
    if generator is None:
        raise TypeError("ascend: a random start needs a generator, so that the run's seed decides it")
    count = balls.uniforms_needed(norm, x[0].numel())
    uniforms = torch.rand(len(x), count, generator=generator).to(x.device, non_blocking=True)
    return balls.within(x, eps, norm, uniforms)
