"""What a diffusion model is made of, in plain values, and the model on disk.

A folder holds the tensors in ``model.safetensors`` and the rest in ``model.json``; nothing in it can be run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import nn

from holdfast import files
from holdfast.errors import UserError
from holdfast.generative.diffusion import Diffusion
from holdfast.generative.noise_schedule import Course, NoiseSchedule, Parameterisation
from holdfast.generative.text_encoder import TextEncoder, Tokenizer
from holdfast.generative.unet import UNet
from holdfast.generative.vae import VAE
from holdfast.models import load_weights, save_weights
from holdfast.run import Run

__all__ = ["Blueprint", "Latents", "Texts", "build_diffusion", "load_diffusion", "save_diffusion"]

Count = Annotated[int, Field(ge=1)]


class _Plain(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Texts(_Plain):
    """How captions are read; see `Tokenizer` and `TextEncoder`."""

    words: tuple[str, ...]
    length: Count
    silent: tuple[str, ...] = ()
    dim: Count = 64
    layers: Annotated[int, Field(ge=0)] = 2


class Latents(_Plain):
    """The autoencoder; see `VAE`."""

    factor: Literal[2, 4] = 4
    latent: Count = 4
    width: Count = 32


class Blueprint(_Plain):
    """All that a `Diffusion` with a `UNet` is made of but its weights; the names are those of its parts."""

    image_shape: tuple[Count, Count, Count]
    course: Course = "linear"
    steps: Count = 1000
    zero_terminal: bool = False
    predicts: Parameterisation = "eps"
    width: Count = 32
    multipliers: tuple[Count, ...] = (1, 2)
    blocks: Count = 1
    self_attention: tuple[int, ...] = ()
    cross_attention: tuple[int, ...] = ()
    heads: Count = 4
    classes: tuple[str, ...] = ()
    texts: Texts | None = None
    latents: Latents | None = None


def build_diffusion(blueprint: Blueprint, *, run: Run) -> Diffusion:
    """The model of a blueprint, with first weights from the run's stream ``init``.

    Raises:
        UserError: its numbers do not fit each other.
    """
    b = blueprint
    # Layers draw their first weights from the global generator when they are made: lend it our stream meanwhile.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run.rng("init", "diffusion").get_state())
        channels = b.image_shape[0]
        autoencoder: nn.Module | None = None
        if b.latents is not None:
            autoencoder = VAE(channels=channels, **b.latents.model_dump()).requires_grad_(False)
            channels = b.latents.latent
        text = None
        if b.texts is not None:
            tokenizer = Tokenizer(words=b.texts.words, length=b.texts.length, silent=b.texts.silent)
            text = TextEncoder(tokenizer, dim=b.texts.dim, layers=b.texts.layers, heads=b.heads)
        denoiser = UNet(
            channels=channels,
            width=b.width,
            multipliers=b.multipliers,
            blocks=b.blocks,
            self_attention=b.self_attention,
            cross_attention=b.cross_attention,
            classes=len(b.classes),
            context=b.texts.dim if b.texts is not None else 0,
            heads=b.heads,
        )
    model = Diffusion(
        denoiser,
        NoiseSchedule(b.course, b.steps, zero_terminal=b.zero_terminal),
        image_shape=b.image_shape,
        predicts=b.predicts,
        classes=b.classes,
        text=text,
        autoencoder=autoencoder,
    )
    model.blueprint = b
    return model


def save_diffusion(model: Diffusion, folder: str | os.PathLike[str]) -> None:
    """Write a model of `build_diffusion` to a folder.

    Raises:
        UserError: its parts come from elsewhere, or the folder cannot be written.
    """
    if model.blueprint is None:
        raise UserError("a diffusion model of parts from elsewhere is saved by the library that its parts come from.")
    save_weights(model, Path(folder, "model.safetensors"))
    files.write_json(Path(folder, "model.json"), model.blueprint.model_dump(mode="json"))


def load_diffusion(folder: str | os.PathLike[str]) -> Diffusion:
    """Read what `save_diffusion` wrote; the model is on the CPU, in evaluation mode.

    Raises:
        UserError: a file is missing, or is not as it should be.
    """
    path = Path(folder, "model.json")
    try:
        blueprint = Blueprint.model_validate(files.read_json(path))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise UserError(f"{path}: {where} is not as it should be ({problem['msg']}).") from None
    model = build_diffusion(blueprint, run=Run())
    load_weights(model, Path(folder, "model.safetensors"))
    return model.eval()
