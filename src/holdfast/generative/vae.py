"""A small variational autoencoder, so that a diffusion model may work on fewer, smoother numbers than pixels.

Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114; with next to no weight on the prior as
in Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv:2112.10752,
appendix G, but with an l1 loss alone: perceptual and adversarial losses need networks trained elsewhere.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative.attention import group_norm
from holdfast.generative.diffusion import signed
from holdfast.methods import Objective, Paper
from holdfast.models import frozen
from holdfast.run import Run
from holdfast.training import Adam, Constant, Step, fit

__all__ = ["VAE", "VAELoss", "train_vae"]

_MEASURED = 1000  # images by which latents are brought to unit variance


class VAE(nn.Module):
    """Convolutions down to a map of latents and up again.

    Args:
        channels: of the images.
        factor: by which each side shrinks, 2 or 4; it must divide the sides.
        latent: channels of the latents.
        width: channels at full resolution; twice as many after each halving.
    """

    scale: Tensor

    def __init__(self, *, channels: int, factor: Literal[2, 4] = 4, latent: int = 4, width: int = 32):
        super().__init__()
        if factor not in (2, 4):
            raise UserError(f"vae: factor must be 2 or 4, got {factor}.")
        self.factor, self.latent = factor, latent
        sizes = [width * 2**i for i in range(int(math.log2(factor)) + 1)]
        down: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent, sizes[-1], 3, padding=1), _Block(sizes[-1])]
        for small, large in itertools.pairwise(sizes):
            down += [_Block(small), nn.Conv2d(small, large, 3, stride=2, padding=1)]
        for small, large in reversed(list(itertools.pairwise(sizes))):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(large, small, 3, padding=1), _Block(small)]
        down += [_Block(sizes[-1]), group_norm(sizes[-1]), nn.SiLU(), nn.Conv2d(sizes[-1], 2 * latent, 1)]
        up += [group_norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Float[Tensor, "n c h w"], noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [-1, 1] made anew, and mean and log-variance of their latents, unscaled.

        Args:
            images: in [-1, 1].
            noise: standard normal, like the latents, to draw them by; without it they are their means.
        """
        mean, log_variance = self.posterior(images)
        drawn = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return self.up(drawn), mean, log_variance

    def posterior(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, unscaled, of images in [-1, 1].

        Raises:
            UserError: the factor does not divide the sides.
        """
        if any(side % self.factor for side in images.shape[-2:]):
            raise UserError(f"vae: images of {images.shape[-2]}x{images.shape[-1]} cannot shrink by {self.factor}.")
        mean, log_variance = self.down(images).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n z p q"]:
        """The means of the latents, scaled to about unit variance, of images in [-1, 1]."""
        return self.posterior(images)[0] * self.scale

    def decode(self, latents: Float[Tensor, "n z p q"]) -> Float[Tensor, "n c h w"]:
        """Images in about [-1, 1]."""
        return self.up(latents / self.scale)


@dataclass(frozen=True, kw_only=True)
class VAELoss(
    Objective,
    id="vae",
    title="Variational autoencoder",
    paper=Paper(title="Auto-Encoding Variational Bayes", arxiv="1312.6114", venue="ICLR", year=2014),
):
    """How far the pixels of a `VAE` are off, and how far its latents are from standard normal ones.

    Args:
        kl: weight of the latter, per latent number; the former is the mean over pixels.
    """

    logits: ClassVar[bool] = False

    kl: Annotated[float, Field(ge=0)] = 1e-6

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of a batch of images in [0, 1].

        Raises:
            UserError: the model is no `VAE`.
        """
        bare = step.model
        if not isinstance(bare, VAE):
            raise UserError(f"{self.id}: it trains a holdfast.generative.VAE, got {type(bare).__name__}.")
        images = signed(x)
        shape = (len(x), bare.latent, *(side // bare.factor for side in x.shape[-2:]))
        noise = torch.randn(shape, generator=step.rng("latent")).to(x)
        remade, mean, log_variance = model(images, noise)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return (remade - images).abs().mean() + self.kl * kl


def train_vae(
    images: Images, *, factor: Literal[2, 4], latent: int, epochs: int, batch_size: int = 64, lr: float = 1e-3, run: Run
) -> VAE:
    """A trained VAE whose latents have unit variance, over the first thousand images.

    Args:
        images: to learn from.
        factor, latent: see `VAE`.
        epochs, batch_size, lr: of Adam.
        run: see `fit`; float32 in any case.

    Raises:
        UserError: the factor does not divide the sides of the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run.rng("init", "vae").get_state())
        model = VAE(channels=images.shape[0], factor=factor, latent=latent)
    exact = run.but(precision="fp32")
    fit(
        model,
        images,
        epochs=epochs,
        batch_size=batch_size,
        objective=VAELoss(),
        optimizer=Adam(lr=lr),
        schedule=Constant(),
        run=exact,
    )
    measured = images.select(slice(0, _MEASURED))
    with frozen(model), torch.no_grad():
        latents = [model.posterior(signed(x))[0] for x, _ in measured.batches(run.batch_size, run.torch_device)]
    model.scale.copy_(1 / torch.cat(latents).std())
    return model


class _Block(nn.Module):
    """Two convolutions added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))
