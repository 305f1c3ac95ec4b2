"""From a trained model to images: guidance, and the loop around a sampler.

Guidance: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598; only in an interval of times:
Kynkäänniemi et al., "Applying Guidance in a Limited Interval", NeurIPS 2024, arXiv:2404.07724.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.generative.diffusion import Diffusion
from holdfast.generative.noise_schedule import Estimate, NoiseSchedule
from holdfast.methods import Sampler
from holdfast.models import frozen
from holdfast.run import Run

__all__ = ["Denoiser", "guided", "latent_noise", "sample", "sample_path"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoiser:
    """A model with what it is to show and how much it is to insist on it.

    Args:
        model: see `Diffusion`.
        context: what each image is to show, (N, ...); ``None`` where the model is told nothing.
        guidance: g of ``e = e_nothing + g (e_context - e_nothing)``; 1 is the model itself, 0 makes it deaf.
        interval: times (first, last) within which guidance is used; elsewhere it is 1.
        batch_size: images per pass.
    """

    model: Diffusion
    context: Tensor | None = None
    guidance: float = 1.0
    interval: tuple[int, int] | None = None
    batch_size: int = 512

    def __post_init__(self) -> None:
        if self.context is None and self.guidance != 1 and self.model.conditioning != "none":
            raise UserError("guidance needs something to show: a text or a class for each image.")

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the model."""
        return self.model.schedule

    def __call__(self, x: Float[Tensor, "n c h w"], t: int) -> Estimate:
        """Image and noise in `x` at time `t`; pixels are clipped to [-1, 1], and the noise is what then remains."""
        rows = torch.arange(len(x), device=x.device).split(self.batch_size)
        parts = [self._estimate(x[part], t, None if self.context is None else self.context[part]) for part in rows]
        found = Estimate(torch.cat([p.x0 for p in parts]), torch.cat([p.noise for p in parts]))
        if not self.model.clips:
            return found
        x0 = found.x0.clamp(-1, 1)
        return Estimate(x0, (x - self.schedule.signal(t, x) * x0) / self.schedule.noise(t, x))

    def _estimate(self, x: Tensor, t: int, context: Tensor | None) -> Estimate:
        times = torch.full((len(x),), t, device=x.device)
        scale = self.guidance if self.interval is None or self.interval[0] <= t <= self.interval[1] else 1.0
        prediction = guided(self.model, x, times, context, scale)
        return self.schedule.estimate(prediction, x, times, self.model.predicts)


def guided(
    model: Diffusion, x_t: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], context: Tensor | None, scale: float
) -> Tensor:
    """What the network predicts, moved away from what it predicts when told nothing; one pass of the doubled batch.

    The predictions of image, noise and velocity are mixed alike, for each follows from the other at the same `x_t` by
    adding a multiple. At scales 1 and 0 only one of the two is computed.

    Args:
        model: see `Diffusion`.
        x_t, t, context: as for the model; with ``None`` it is told nothing.
        scale: see `Denoiser`.
    """
    nothing = model.nothing(len(x_t))
    if context is None or scale == 0:
        return model(x_t, t, nothing)
    if scale == 1 or nothing is None:
        return model(x_t, t, context)
    if model.text is not None and context.is_floating_point():
        nothing = model.text(nothing)
    with_, without = model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([context, nothing])).chunk(2)
    return without + scale * (with_ - without)


def latent_noise(model: Diffusion, n: int, *, run: Run, name: str = "start") -> Tensor:
    """Standard normal noise for `n` images, on the run's device, from the stream `name`."""
    return torch.randn(n, *model.latent_shape, generator=run.rng(name)).to(run.torch_device)


def sample(
    model: Diffusion,
    n: int | None = None,
    *,
    of: Sequence[str] | Int64[Tensor, " n"] | None = None,
    sampler: Sampler | str = "ddim",
    guidance: float = 1.0,
    interval: tuple[int, int] | None = None,
    run: Run,
) -> Float[Tensor, "n c h w"]:
    """Make images.

    Args:
        model: see `Diffusion`.
        n: how many; may be left out where `of` says it.
        of: a caption, a class or a label for each; or one for all. Without it the model is told nothing.
        sampler: a method, or its spec such as ``"ddim(steps=20)"``.
        guidance, interval: see `Denoiser`.
        run: device, seed, images per pass. Which noise an image begins with does not depend on the latter.

    Returns:
        Images in [0, 1], float32, on the CPU.

    Raises:
        UserError: a word or class is unknown, or the number of images is unclear.
    """
    with frozen(model, device=run.torch_device), torch.no_grad():
        for _, x_t in sample_path(model, n, of=of, sampler=sampler, guidance=guidance, interval=interval, run=run):
            x = x_t
        return torch.cat([model.decode(part).float().cpu() for part in x.split(run.batch_size)])


def sample_path(
    model: Diffusion,
    n: int | None = None,
    *,
    of: Sequence[str] | Int64[Tensor, " n"] | None = None,
    sampler: Sampler | str = "ddim",
    guidance: float = 1.0,
    interval: tuple[int, int] | None = None,
    run: Run,
) -> Iterator[tuple[int, Tensor]]:
    """As `sample`, but all that comes before: each time and ``x_t`` (N, C, H, W) on the run's device, noise first.

    The model is lent out only while a step is computed, so that it may be trained in between.
    """
    count = _count(n, of)
    method = catalog.build(sampler, kind=Sampler)
    if isinstance(of, str):
        of = [of]
    with frozen(model, device=run.torch_device):
        context = None if of is None else model.context(of)
        x = latent_noise(model, count, run=run)
    if context is not None:
        context = context.expand(count, *context.shape[1:]) if len(context) == 1 else context
    denoise = Denoiser(model=model, context=context, guidance=guidance, interval=interval, batch_size=run.batch_size)
    yield model.schedule.steps, x
    path = method.path(denoise, x, run=run)
    while True:
        with frozen(model, device=run.torch_device), torch.no_grad():
            state = next(path, None)
        if state is None:
            return
        yield state


def _count(n: int | None, of: Sequence[str] | Tensor | None) -> int:
    given = None if of is None or isinstance(of, str) else len(of)
    if given not in (None, 1) and n not in (None, given):
        raise UserError(f"sample: {n} images are wanted, but {given} texts or classes are given.")
    found = n if n is not None else 1 if isinstance(of, str) else given
    if found is None or found < 1:
        raise UserError(f"sample: n must be at least 1, got {n}.")
    return found
