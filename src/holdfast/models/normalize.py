"""The first layer of every model here: images in [0, 1] become numbers the network was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel; both are buffers, so that a weights file carries them.

    Args:
        channels: number of channels.
        mean: per channel, in the unit of pixels in [0, 1]. Default 0.5.
        std: per channel, above 0. Default 0.25, about the spread of natural images.

    Raises:
        UserError: a length differs from `channels`, or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        for name, values, default in (("mean", mean, 0.5), ("std", std, 0.25)):
            numbers = [default] * channels if values is None else [float(v) for v in values]
            if len(numbers) != channels:
                raise UserError(f"normalize: {name} needs {channels} values, one per channel, got {len(numbers)}.")
            if not all(math.isfinite(v) and (v > 0 or name == "mean") for v in numbers):
                takes = "finite and above 0" if name == "std" else "finite"
                raise UserError(f"normalize: {name} must be {takes}, got {numbers}.")
            self.register_buffer(name, torch.tensor(numbers).view(1, channels, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise a batch.

        Raises:
            UserError: the images have another number of channels (one channel would silently become three).
        """
        if x.shape[1] != self.mean.shape[1]:
            raise UserError(f"the model takes images of {self.mean.shape[1]} channels, got {x.shape[1]}.")
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The values, for printing."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
