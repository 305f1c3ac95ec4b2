"""A small U-Net that says what noise is in an image: down through resolutions and up again, with skips between.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, appendix B; cross-attention to a
text as in Rombach et al., CVPR 2022, arXiv:2112.10752. Thousands of weights instead of millions, for images of 8 to 32
pixels on a CPU. It belongs in float32: autocast to bf16 made it fifty times slower on CPUs without such arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.generative.attention import Attention, group_norm

__all__ = ["UNet", "sinusoids"]


class UNet(nn.Module):
    """Residual blocks at each resolution, one skip per resolution, attention where asked for.

    Args:
        channels: of the images, in and out.
        width: channels at the first resolution.
        multipliers: of the width at each resolution; each but the first halves the image, rounding up.
        blocks: residual blocks at each resolution, on either way.
        self_attention: resolutions, counted from 0, at whose end pixels attend to each other.
        cross_attention: resolutions at which they attend to the tokens of a text.
        classes: K for images of K classes: class K means none. 0 for no classes.
        context: numbers per token; 0 for no text.
        heads: of each attention; divides the channels there.
        dropout: within residual blocks.
        explicit: see `Attention`.

    Raises:
        UserError: the numbers do not fit each other.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        self_attention: Sequence[int] = (),
        cross_attention: Sequence[int] = (),
        classes: int = 0,
        context: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
        explicit: bool = False,
    ):
        super().__init__()
        if not multipliers or blocks < 1:
            raise UserError("unet: it needs at least one resolution and one block.")
        if classes and context:
            raise UserError("unet: it takes classes or a text, not both.")
        attending = {*self_attention, *(cross_attention if context else ())}
        for place in attending:
            if place not in range(len(multipliers)):
                raise UserError(f"unet: attention at resolution {place}, but there are {len(multipliers)}, from 0.")
            if width * multipliers[place] % heads:
                raise UserError(f"unet: {heads} heads do not divide {width * multipliers[place]} channels.")
        self.classes, self.context = classes, context
        emb = 4 * width
        self.time = nn.Sequential(nn.Linear(_SINUSOIDS, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes else None
        self.first = nn.Conv2d(channels, width, 3, padding=1)

        def level(number: int, inputs: int) -> _Level:
            return _Level(
                inputs,
                width * multipliers[number],
                blocks=blocks,
                emb=emb,
                heads=heads if number in attending else 0,
                pixels=number in self_attention,
                context=context if number in cross_attention else 0,
                dropout=dropout,
                explicit=explicit,
            )

        sizes = [width * m for m in multipliers]
        self.down = nn.ModuleList(level(i, sizes[max(i - 1, 0)] if i else width) for i in range(len(sizes)))
        self.shrink = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in sizes[:-1])
        self.middle = _Block(sizes[-1], sizes[-1], emb, dropout)
        self.up = nn.ModuleList(level(i, 2 * sizes[i]) for i in range(len(sizes)))
        self.grow = nn.ModuleList(nn.Conv2d(c, d, 3, padding=1) for d, c in itertools.pairwise(sizes))
        self.norm = group_norm(sizes[0])
        self.last = nn.Conv2d(sizes[0], channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x_t: Float[Tensor, "n c h w"],
        t: Int64[Tensor, " n"],
        context: Tensor | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """What the network predicts of noisy images.

        Args:
            x_t: noisy images.
            t: their times.
            context: labels int64 (N,), or tokens float (N, T, D), as the network was made for.

        Raises:
            UserError: it is not what the network was made for.
        """
        emb = self.time(sinusoids(t).to(x_t.dtype))
        if self.label is not None:
            if context is None or context.ndim != 1:
                raise UserError("unet: made for classes, it needs a label for each image.")
            emb = emb + self.label(context)
        elif self.context and (context is None or context.ndim != 3):
            raise UserError("unet: made for texts, it needs the tokens of one for each image, (N, T, D).")
        emb = F.silu(emb)
        tokens = context if self.context else None
        h = self.first(x_t)
        skips = []
        for i, level in enumerate(self.down):
            h = level(self.shrink[i - 1](h) if i else h, emb, tokens)
            skips.append(h)
        h = self.middle(h, emb)
        for i in reversed(range(len(self.up))):
            if i + 1 < len(self.up):
                # Up to the size of the skip, which is no multiple where an odd side was halved.
                h = self.grow[i](F.interpolate(h, size=skips[i].shape[-2:], mode="nearest"))
            h = self.up[i](torch.cat([h, skips[i]], 1), emb, tokens)
        return self.last(F.silu(self.norm(h)))


_SINUSOIDS = 128


def sinusoids(t: Int64[Tensor, " n"], count: int = _SINUSOIDS) -> Float[Tensor, "n d"]:
    """Sines and cosines of times, at frequencies from 1 down to 1e-4 (Vaswani et al., 2017, section 3.5)."""
    half = count // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class _Block(nn.Module):
    """Two convolutions with the time's embedding between them, added to the input."""

    def __init__(self, inputs: int, outputs: int, emb: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.emb = nn.Linear(emb, outputs)
        self.norm2, self.conv2 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(emb)[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class _Level(nn.Module):
    """The blocks of one resolution, and its attention."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        blocks: int,
        emb: int,
        heads: int,
        pixels: bool,
        context: int,
        dropout: float,
        explicit: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(_Block(outputs if i else inputs, outputs, emb, dropout) for i in range(blocks))
        self.pixels = Attention(outputs, heads=heads, explicit=explicit) if pixels else None
        self.text = Attention(outputs, context=context, heads=heads, explicit=explicit) if context else None

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
        if self.pixels is not None:
            x = self.pixels(x)
        return x if self.text is None else self.text(x, tokens)
