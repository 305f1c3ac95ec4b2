"""DDIM: from noise to images in few steps, without further noise on the way, and back.

A model trained for a thousand small steps also knows the way in large ones: each takes the noise it finds out of the
image entirely and puts as much of the same back as belongs to the earlier time. As nothing is drawn, an image can also
be taken back to the noise that it would come from. With eta = 1 fresh noise replaces as much as in DDPM.

Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, arXiv:2010.02502, equations 12 and 16.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.generative.noise_schedule import Estimate, NoiseSchedule, Spacing, times
from holdfast.generative.sampling import Denoiser
from holdfast.methods import Paper, Sampler
from holdfast.run import Run

__all__ = ["DDIM", "ddim_step"]


@dataclass(frozen=True, kw_only=True)
class DDIM(
    Sampler,
    id="ddim",
    title="DDIM",
    paper=Paper(title="Denoising Diffusion Implicit Models", arxiv="2010.02502", venue="ICLR", year=2021),
):
    """Steps of any length, deterministic unless told otherwise.

    Args:
        steps: calls of the network, at most the T that the model was trained for.
        eta: how much of the noise is drawn afresh; 0 is none, 1 as much as DDPM.
        spacing: of the times: ``"uniform"``, or ``"quadratic"`` for more of them near the image.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    spacing: Spacing = "uniform"

    def path(self, denoise: Denoiser, x: Float[Tensor, "n c h w"], *, run: Run) -> Iterator[tuple[int, Tensor]]:
        """See `Sampler`."""
        visited = times(denoise.schedule.steps, self.steps, self.spacing)
        for t, s in itertools.pairwise(visited):
            fresh = torch.randn(x.shape, generator=run.rng("step", t)).to(x) if self.eta and s else None
            x = ddim_step(denoise.schedule, denoise(x, t), t, s, eta=self.eta, fresh=fresh)
            yield s, x

    def invert(self, denoise: Denoiser, x0: Float[Tensor, "n c h w"]) -> Tensor:
        """The noise that images in [-1, 1], or latents, would come from: the same steps upwards, with eta 0.

        Each step takes the noise found before it for that found after it, so more steps bring it closer.
        """
        visited = times(denoise.schedule.steps, self.steps, self.spacing)[::-1]
        x = x0
        for s, t in itertools.pairwise(visited):
            # At time 0 there is no noise to be found; that at time 1 is the nearest to it.
            x = ddim_step(denoise.schedule, denoise(x, max(s, 1)), s, t)
        return x


def ddim_step(
    schedule: NoiseSchedule, found: Estimate, t: int, s: int, *, eta: float = 0.0, fresh: Tensor | None = None
) -> Tensor:
    """From time `t` to any other, `s`.

    Args:
        schedule: of the model.
        found: image and noise at time `t`.
        t, s: the times; s < t unless eta is 0.
        eta: see `DDIM`.
        fresh: standard normal noise, where eta is above 0; at s = 0 there is none.
    """
    abar_t, abar_s = float(schedule.abar[t]), float(schedule.abar[s])
    sigma = 0.0
    if eta and s:
        sigma = eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)) ** 0.5
    x = abar_s**0.5 * found.x0 + max(1 - abar_s - sigma**2, 0.0) ** 0.5 * found.noise
    return x if fresh is None else x + sigma * fresh
