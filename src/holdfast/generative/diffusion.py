"""The diffusion model: a network that finds the noise in an image, with what tells it how much there is and of what.

A module like any other, so that `fit` trains it and unlearners change it: ``model(x_t, t, context)`` is what the
network predicts, `estimate` what image and noise follow from that. Images are in [0, 1] outside and in [-1, 1] inside,
or are the latents of an autoencoder there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.errors import UserError, one_of
from holdfast.generative.noise_schedule import Estimate, NoiseSchedule, Parameterisation

if TYPE_CHECKING:
    from holdfast.generative.storage import Blueprint

__all__ = ["Autoencoder", "Conditioning", "Diffusion", "pixels_of", "signed"]

Conditioning = Literal["none", "class", "text"]


class Autoencoder(Protocol):
    """What a latent diffusion needs of an autoencoder, which is a module besides."""

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n z p q"]:
        """Latents of about unit variance of images in [-1, 1]."""

    def decode(self, latents: Float[Tensor, "n z p q"]) -> Float[Tensor, "n c h w"]:
        """Images in about [-1, 1]."""


class Diffusion(nn.Module):
    """A denoising network, its noise schedule, and what it is told of the image.

    Args:
        denoiser: called as ``denoiser(x_t, t, context)``; gives a tensor like `x_t`.
        schedule: the noise at each time.
        image_shape: channels, height, width of the images.
        predicts: what the denoiser gives.
        classes: names of the classes that it is told, for images made by class.
        text: a `TextEncoder`, or a module that does what it does, for images made by text.
        autoencoder: a module that is an `Autoencoder`; ``None`` works on the pixels themselves.

    Raises:
        UserError: the parts do not fit.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        *,
        image_shape: tuple[int, int, int],
        predicts: Parameterisation = "eps",
        classes: Sequence[str] = (),
        text: Any = None,
        autoencoder: nn.Module | None = None,
    ):
        super().__init__()
        if predicts == "eps" and not schedule.abar[-1] > 0:
            raise UserError(
                "diffusion: with no signal left at the last time, the network must predict v or x0, not eps."
            )
        if classes and text is not None:
            raise UserError("diffusion: a model is told classes or texts, not both.")
        self.denoiser, self.schedule, self.text, self.autoencoder = denoiser, schedule, text, autoencoder
        self.image_shape, self.classes = image_shape, tuple(classes)
        self.predicts: Parameterisation = predicts
        #: What it was built from, where `build_diffusion` has built it.
        self.blueprint: Blueprint | None = None

    @property
    def conditioning(self) -> Conditioning:
        """What the model is told of the images it makes."""
        return "text" if self.text is not None else "class" if self.classes else "none"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of what the denoiser works on."""
        if self.autoencoder is None:
            return self.image_shape
        device = self.schedule.abar.device
        with torch.no_grad():
            c, h, w = self.encode(torch.zeros(1, *self.image_shape, device=device)).shape[1:]
        return c, h, w

    @property
    def clips(self) -> bool:
        """Whether estimated images may be clipped to [-1, 1], which latents may not."""
        return self.autoencoder is None

    def forward(self, x_t: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], context: Tensor | None = None) -> Tensor:
        """What the denoiser predicts.

        Args:
            x_t: noisy images.
            t: their times, in 1..T.
            context: from `context` or `nothing`; or what the text encoder has made of tokens, float (N, T, D).
        """
        if self.text is not None and context is not None and not context.is_floating_point():
            context = self.text(context)
        return self.denoiser(x_t, t, context)

    def estimate(
        self, x_t: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], context: Tensor | None = None
    ) -> Estimate:
        """The images and the noise in `x_t`, by the model; arguments as for a call."""
        return self.schedule.estimate(self(x_t, t, context), x_t, t, self.predicts)

    def noise(self, x_t: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], context: Tensor | None = None) -> Tensor:
        """The noise in `x_t`, by the model, whatever its network predicts; arguments as for a call."""
        return self.estimate(x_t, t, context).noise

    def errors(
        self, x0: Float[Tensor, "n c h w"], t: Int64[Tensor, " n"], noise: Tensor, context: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """The mean squared error of each image's prediction, when this noise is added to it at this time."""
        target = self.schedule.target(x0, t, noise, self.predicts)
        return (self(self.schedule.diffuse(x0, t, noise), t, context) - target).square().flatten(1).mean(1)

    def context(self, wanted: Sequence[str] | Int64[Tensor, " n"]) -> Tensor:
        """What to tell the denoiser: tokens int64 (N, T) of captions, or labels int64 (N,).

        Args:
            wanted: captions; or names of classes, or their labels. An empty text means nothing in particular.

        Raises:
            UserError: a word or class is unknown, or the model makes images of no kind in particular.
        """
        device = self.schedule.abar.device
        if self.text is not None:
            if isinstance(wanted, Tensor):
                raise UserError("this model is told texts; give captions, not labels.")
            return self.text.tokenizer(wanted).to(device)
        if not self.classes:
            raise UserError("this model makes images of no kind in particular; it cannot be told what to show.")
        if isinstance(wanted, Tensor):
            if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) <= len(self.classes):
                raise UserError(f"labels must lie in 0..{len(self.classes) - 1}, or be {len(self.classes)} for none.")
            return wanted.to(device)
        for name in wanted:
            if name and name not in self.classes:
                raise one_of("class", name, self.classes)
        return torch.tensor([self.classes.index(n) if n else len(self.classes) for n in wanted], device=device)

    def nothing(self, count: int) -> Tensor | None:
        """What tells the denoiser nothing, for `count` images; ``None`` where it is told nothing in any case."""
        device = self.schedule.abar.device
        if self.text is not None:
            return self.text.tokenizer.nothing(count).to(device)
        return torch.full((count,), len(self.classes), device=device) if self.classes else None

    def encode(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        """What the denoiser works on, from images in [0, 1]; the autoencoder takes no gradients."""
        x = signed(images)
        if self.autoencoder is None:
            return x
        with torch.no_grad():
            return self.autoencoder.encode(x)  # type: ignore[operator]

    def decode(self, x0: Tensor) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1], from what the denoiser works on."""
        return pixels_of(x0 if self.autoencoder is None else self.autoencoder.decode(x0))  # type: ignore[operator]

    def denoising_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of denoiser and text encoder by name, without the autoencoder's."""
        return ((name, p) for name, p in self.named_parameters() if not name.startswith("autoencoder."))


def signed(images: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return 2 * images - 1


def pixels_of(x: Tensor) -> Tensor:
    """From [-1, 1], more or less, to [0, 1]."""
    return ((x + 1) / 2).clamp(0, 1)
