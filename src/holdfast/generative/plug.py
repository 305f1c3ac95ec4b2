"""Parts from other libraries as a `Diffusion`: a U-Net, a text encoder and an autoencoder made as diffusers makes them.

Nothing of those libraries is imported; the parts are known by what they can do. What results is sampled, trained and
unlearnt like any other model:

    model = plugged(pipe.unet, pipe.scheduler, tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, vae=pipe.vae)

Their times run from 0 to T - 1 where ours run from 1 to T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.errors import UserError, one_of
from holdfast.generative.diffusion import Diffusion
from holdfast.generative.noise_schedule import NoiseSchedule, Parameterisation

__all__ = ["plugged"]

_PREDICTS: dict[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def plugged(
    unet: nn.Module,
    scheduler: Any,
    *,
    tokenizer: Any = None,
    text_encoder: nn.Module | None = None,
    vae: nn.Module | None = None,
    classes: Sequence[str] = (),
    image_shape: tuple[int, int, int] | None = None,
) -> Diffusion:
    """A `Diffusion` of parts in the manner of diffusers.

    Args:
        unet: called as ``unet(x_t, t, encoder_hidden_states=...)``, or ``class_labels=...`` for a model told classes;
            what it gives has ``sample``. ``config.in_channels`` and ``config.sample_size`` are read where they exist.
        scheduler: has ``alphas_cumprod`` and, in ``config``, ``prediction_type``. Its own steps are not used.
        tokenizer: called with texts, gives ``input_ids``; has ``model_max_length``.
        text_encoder: called with tokens, gives ``last_hidden_state``.
        vae: ``encode(x).latent_dist.mean``, ``decode(z).sample``, and ``config.scaling_factor``.
        classes: names, for a model told classes; the label after the last means none.
        image_shape: channels, height, width of the images; by default what the parts say.

    Raises:
        UserError: a part is missing, or says nothing of what is needed.
    """
    if (tokenizer is None) != (text_encoder is None):
        raise UserError("plugged: texts need both a tokenizer and a text encoder.")
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
    if kind not in _PREDICTS:
        raise one_of("prediction type", str(kind), _PREDICTS)
    return Diffusion(
        _Denoiser(unet, by_class=bool(classes)),
        NoiseSchedule.of(scheduler.alphas_cumprod),
        image_shape=_image_shape(unet, vae) if image_shape is None else image_shape,
        predicts=_PREDICTS[kind],
        classes=classes,
        text=None if text_encoder is None else _Text(tokenizer, text_encoder),
        autoencoder=None if vae is None else _Autoencoder(vae),
    )


class _Denoiser(nn.Module):
    """Hands the context over under its name, and the time as it is counted there."""

    def __init__(self, unet: nn.Module, *, by_class: bool):
        super().__init__()
        self.unet, self.by_class = unet, by_class

    def forward(self, x_t: Tensor, t: Int64[Tensor, " n"], context: Tensor | None = None) -> Tensor:
        if self.by_class:
            return self.unet(x_t, t - 1, class_labels=context).sample
        return self.unet(x_t, t - 1, **({} if context is None else {"encoder_hidden_states": context})).sample


class _Tokens:
    """A tokenizer in the manner of transformers, as a `Tokenizer`."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.length = int(tokenizer.model_max_length)

    def __call__(self, captions: Sequence[str], *, rng: torch.Generator | None = None) -> Int64[Tensor, "n t"]:
        """All to their full length; there is no other place in it than the beginning."""
        found = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return torch.as_tensor(found.input_ids)

    def nothing(self, count: int) -> Int64[Tensor, "n t"]:
        """Empty texts."""
        return self([""]).expand(count, -1)

    def places(self, caption: str, word: str) -> list[int]:
        """Where the tokens of a word stand among those of a caption."""
        whole, empty = self([caption])[0].tolist(), self([""])[0].tolist()
        padded = self([word])[0].tolist()
        # What a word's tokens have that no empty text has: the tokens between beginning and end.
        begin = next((i for i, (a, b) in enumerate(zip(padded, empty, strict=True)) if a != b), 0)
        end = next((i for i in range(begin, len(padded)) if padded[i] in empty), len(padded))
        part = padded[begin:end]
        starts = [i for i in range(len(whole) - len(part) + 1) if part and whole[i : i + len(part)] == part]
        return [i + k for i in starts for k in range(len(part))]


class _Text(nn.Module):
    """A text encoder in the manner of transformers, as a `TextEncoder`."""

    def __init__(self, tokenizer: Any, encoder: nn.Module):
        super().__init__()
        self.tokenizer, self.encoder = _Tokens(tokenizer), encoder

    def forward(self, ids: Int64[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        return self.encoder(ids).last_hidden_state

    def embed(self, ids: Int64[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        """The rows of its table."""
        return self._table()(ids)

    def encode(self, embeddings: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """It takes tokens alone, so that the rows are put in the place of what the table gives for any."""
        ids = torch.zeros(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
        handle = self._table().register_forward_hook(lambda module, inputs, output: embeddings)
        try:
            return self(ids)
        finally:
            handle.remove()

    def _table(self) -> nn.Module:
        table: nn.Module = self.encoder.get_input_embeddings()  # type: ignore[operator]
        return table


class _Autoencoder(nn.Module):
    """An autoencoder in the manner of diffusers, with its latents scaled."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled means of the latents."""
        mean: Tensor = self.vae.encode(images).latent_dist.mean
        return self.scale * mean

    def decode(self, latents: Tensor) -> Tensor:
        """Images."""
        images: Tensor = self.vae.decode(latents / self.scale).sample
        return images


def _image_shape(unet: nn.Module, vae: Any) -> tuple[int, int, int]:
    """What the parts say of the images."""
    try:
        side = int(unet.config.sample_size)  # type: ignore[union-attr, arg-type]
        if vae is None:
            return int(unet.config.in_channels), side, side  # type: ignore[union-attr, arg-type]
        side *= 2 ** (len(vae.config.block_out_channels) - 1)
        return int(vae.config.in_channels), side, side
    except (AttributeError, TypeError):
        raise UserError("plugged: the parts do not say how large the images are; give image_shape.") from None
