"""DDPM's ancestral sampler: as many steps as the model was trained for, each a draw from the reverse process.

The mean of a step lies between the noisy image and the image that the model finds under it, at the place that Bayes'
rule gives; the noise that is added has one of the two variances between which the true one lies.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, algorithm 2 and equation 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.generative.noise_schedule import NoiseSchedule
from holdfast.generative.sampling import Denoiser
from holdfast.methods import Paper, Sampler
from holdfast.run import Run

__all__ = ["DDPM", "ddpm_step"]

Variance = Literal["small", "large"]


@dataclass(frozen=True, kw_only=True)
class DDPM(
    Sampler,
    id="ddpm",
    title="DDPM's ancestral sampler",
    paper=Paper(title="Denoising Diffusion Probabilistic Models", arxiv="2006.11239", venue="NeurIPS", year=2020),
):
    """Every time from T down to 0, with fresh noise at each but the last.

    Args:
        variance: of that noise: ``"large"`` is beta, right for data that are noise themselves; ``"small"`` is right for
            a single image.
    """

    variance: Variance = "small"

    def path(self, denoise: Denoiser, x: Float[Tensor, "n c h w"], *, run: Run) -> Iterator[tuple[int, Tensor]]:
        """See `Sampler`."""
        for t in range(denoise.schedule.steps, 0, -1):
            fresh = torch.randn(x.shape, generator=run.rng("step", t)).to(x) if t > 1 else None
            x = ddpm_step(denoise.schedule, denoise(x, t).x0, x, t, variance=self.variance, fresh=fresh)
            yield t - 1, x


def ddpm_step(
    schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: int, *, variance: Variance = "small", fresh: Tensor | None
) -> Tensor:
    """From time `t` to ``t - 1``.

    Args:
        schedule: of the model.
        x0: the image found under `x_t`.
        x_t: the noisy image.
        t: at least 1.
        variance: see `DDPM`.
        fresh: standard normal noise; none is added at t = 1.
    """
    beta = schedule.beta(t)
    now, before = float(schedule.abar[t]), float(schedule.abar[t - 1])
    x = before**0.5 * beta / (1 - now) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * x_t
    if fresh is None or t == 1:
        return x
    power = beta if variance == "large" else beta * (1 - before) / (1 - now)
    return x + power**0.5 * fresh
