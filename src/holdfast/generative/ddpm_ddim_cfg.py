"""The diffusion core: one network trained to find noise, sampled by DDPM or DDIM, with or without guidance.

The network learns with and without being told what an image shows. Sampled in a thousand small steps it draws from what
it learnt; in fifty large ones it gives nearly the same at a twentieth of the cost; and moved away from what it would
draw when told nothing, it shows what it was told more clearly. All of it may work on the latents of a small VAE.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239; Song et al., "Denoising Diffusion
Implicit Models", ICLR 2021, arXiv:2010.02502; Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022,
arXiv:2207.12598; put together as in "Enhancing Diffusion Models for High-Quality Image Generation", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.generative.diffusion import Diffusion
from holdfast.generative.noise_prediction import NoisePrediction
from holdfast.generative.noise_schedule import Course, Parameterisation
from holdfast.generative.storage import Blueprint, Latents, Texts, build_diffusion
from holdfast.generative.text_encoder import Tokenizer
from holdfast.generative.vae import train_vae
from holdfast.methods import Generator, Paper
from holdfast.run import Run
from holdfast.training import Adam, ClipGradient, Constant, fit

__all__ = ["DDPMDDIMCFG", "contexts"]

Whole = Annotated[int, Field(ge=1)]
Places = tuple[Annotated[int, Field(ge=0, le=8)], ...]


@dataclass(frozen=True, kw_only=True)
class DDPMDDIMCFG(
    Generator,
    id="ddpm-ddim-cfg",
    title="Diffusion: DDPM, DDIM and classifier-free guidance",
    paper=Paper(title="Denoising Diffusion Probabilistic Models", arxiv="2006.11239", venue="NeurIPS", year=2020),
):
    """Trains a diffusion model; `sample` makes images with it, by `ddpm` or `ddim`, with guidance.

    The weights are averaged over the training, and the average is what is returned. It trains in float32 whatever the
    run's precision: in bf16 a small U-Net is far slower on most CPUs.

    Args:
        updates: optimizer steps; whole epochs, as many as come nearest from above.
        batch_size, lr: of Adam; the gradient is clipped to norm 1. The paper's rate is 2e-4, for large networks.
        ema: decay of the average; the paper's 0.9999 is for trainings a hundred times as long.
        steps: T, the times that noise is added at.
        schedule: how much of it: ``"linear"`` as in DDPM, ``"cosine"``, ``"sigmoid"`` or ``"quadratic"``.
        zero_terminal: leave nothing of the image at T; needs ``predicts="v"`` or ``"x0"``.
        predicts: noise, image or velocity.
        conditioning: what the model is told: ``"text"``, the column ``caption``; ``"class"``; ``"none"``; ``"auto"``
            is the first of them that there is.
        drop: share of the images of which it is told nothing.
        width, multipliers, blocks, self_attention, cross_attention: of the `UNet`.
        tokens: of a caption, with its beginning and end; ``none`` is as many as the longest needs.
        text_layers: Transformer blocks of the text encoder.
        latent: work on latents of a VAE that makes the sides smaller by this factor, 2 or 4; ``none`` on pixels.
    """

    updates: Whole = 5000
    batch_size: Whole = 128
    lr: Annotated[float, Field(gt=0)] = 1e-3
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    schedule: Course = "linear"
    zero_terminal: bool = False
    predicts: Parameterisation = "eps"
    conditioning: Literal["auto", "none", "class", "text"] = "auto"
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    width: Whole = 32
    multipliers: tuple[Whole, ...] = (1, 2)
    blocks: Whole = 1
    self_attention: Places = ()
    cross_attention: Places = (1,)
    tokens: Whole | None = None
    text_layers: Annotated[int, Field(ge=0)] = 2
    latent: Literal[2, 4] | None = None

    def __call__(self, images: Images, *, run: Run) -> Diffusion:
        """A trained `Diffusion`, in evaluation mode.

        With ``run.out`` set, the training is kept there and goes on where it was stopped.

        Raises:
            UserError: what the model is to be told is not among the images' columns, or the settings do not fit.
        """
        model = self.untrained(images, run=run)
        if self.latent is not None:
            epochs = self._epochs(len(images))
            child = run.child("autoencoder")
            vae = train_vae(images, factor=self.latent, latent=4, epochs=epochs, batch_size=self.batch_size, run=child)
            assert model.autoencoder is not None
            model.autoencoder.load_state_dict(vae.state_dict())
        blueprint = model.blueprint
        trained = fit(
            model,
            images.with_column("context", contexts(model, images, rng=run.rng("places"))),
            epochs=self._epochs(len(images)),
            batch_size=self.batch_size,
            objective=NoisePrediction(drop=self.drop),
            optimizer=Adam(lr=self.lr),
            schedule=Constant(),
            callbacks=[ClipGradient()],
            ema=self.ema,
            run=run.but(precision="fp32"),
        ).final_model
        assert isinstance(trained, Diffusion)
        trained.blueprint = blueprint
        return trained.requires_grad_(True)

    def untrained(self, images: Images, *, run: Run) -> Diffusion:
        """The model before its first step.

        Raises:
            UserError: see a call.
        """
        told = self._told(images)
        texts = None
        if told == "text":
            tokenizer = Tokenizer.learn(_captions(images), self.tokens)
            texts = Texts(**tokenizer.to_json(), layers=self.text_layers)
        blueprint = Blueprint(
            image_shape=images.shape,
            course=self.schedule,
            steps=self.steps,
            zero_terminal=self.zero_terminal,
            predicts=self.predicts,
            width=self.width,
            multipliers=self.multipliers,
            blocks=self.blocks,
            self_attention=self.self_attention,
            cross_attention=self.cross_attention if texts is not None else (),
            classes=images.classes if told == "class" else (),
            texts=texts,
            latents=None if self.latent is None else Latents(factor=self.latent),
        )
        return build_diffusion(blueprint, run=run)

    def _told(self, images: Images) -> Literal["none", "class", "text"]:
        if self.conditioning == "auto":
            return "text" if "caption" in images.columns else "class" if images.num_classes > 1 else "none"
        if self.conditioning == "text" and "caption" not in images.columns:
            raise UserError(f"{self.id}: to be told texts, the training set {images.name!r} needs a column 'caption'.")
        return self.conditioning

    def _epochs(self, count: int) -> int:
        """Epochs that take `updates` steps: the whole batches of an epoch, and its rest where that is two images."""
        whole, rest = divmod(count, self.batch_size)
        return math.ceil(self.updates / max(1, whole + (rest >= 2)))


def contexts(model: Diffusion, images: Images, *, rng: torch.Generator | None = None) -> Int64[Tensor, "n ..."]:
    """What a model is told of images: the tokens of their captions, their labels, or zeros.

    Args:
        model: says which.
        images: with a column ``caption`` where it is told texts.
        rng: places each caption anywhere in the room there is; without it they stand at the beginning.
    """
    if model.text is not None:
        tokens: Tensor = model.text.tokenizer(_captions(images), rng=rng)
        return tokens
    return images.y if model.classes else torch.zeros_like(images.y)


def _captions(images: Images) -> list[str]:
    return [str(caption) for caption in np.asarray(images.columns["caption"]).tolist()]
