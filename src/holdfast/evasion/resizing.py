"""Random resizing and padding, drawn anew for every image, as a linear map whose transpose is known.

An image is enlarged by bilinear interpolation, set at a random place into a black canvas, and the canvas is shrunk to
the image's size. Along each axis that is one matrix per image, so that a batch takes four small matrix products, and a
gradient goes back through the transposed matrices without autograd.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Resizing", "canvas"]


class Resizing:
    """One draw for each of N images.

    Args:
        uniforms: numbers in [0, 1), shape (N, 4): whether to resize, to what size, and where to, down and across.
        probability: of an image to be resized; the others stay as they are.
        factor: the canvas's size, in multiples of the image's.
        height, width: of the images.
    """

    def __init__(self, uniforms: Float[Tensor, "n 4"], probability: float, factor: float, height: int, width: int):
        chosen, size = uniforms[:, 0] < probability, uniforms[:, 1]
        self.down = _axis(chosen, size, uniforms[:, 2], factor, height)
        self.across = _axis(chosen, size, uniforms[:, 3], factor, width)

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images, resized."""
        return _like(x, self.down @ x.double() @ self.across.transpose(2, 3))

    def back(self, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The gradient with respect to the images, from that with respect to the resized ones."""
        return _like(gradient, self.down.transpose(2, 3) @ gradient.double() @ self.across)


def canvas(length: int, factor: float) -> int:
    """The canvas's side for an image's side, in whole pixels: at least one more than the image's."""
    return max(int(length * factor), length + 1)


def _axis(chosen: Tensor, size: Tensor, place: Tensor, factor: float, length: int) -> Float[Tensor, "n 1 l l"]:
    """The matrices of one axis. In float64, so that rounding does not depend on how a batch is cut."""
    outer = canvas(length, factor)
    inner = length + (size * (outer - length)).long()  # sides length..outer-1, as likely each
    start = (place * (outer - inner + 1)).long()
    # Enlarging: pixel q of the inner image, at q + start of the canvas, looks at this place of the original.
    q = torch.arange(outer, device=chosen.device) - start[:, None]
    enlarge = _hats((q + 0.5) * length / inner[:, None].double() - 0.5, length)
    enlarge *= ((q >= 0) & (q < inner[:, None]))[:, :, None]
    pixels = torch.arange(length, device=chosen.device, dtype=torch.float64)
    shrink = _hats((pixels + 0.5) * outer / length - 0.5, outer)
    same = torch.eye(length, dtype=torch.float64, device=chosen.device)
    return torch.where(chosen[:, None, None], shrink @ enlarge, same)[:, None]


def _hats(places: Tensor, length: int) -> Tensor:
    """Weights of bilinear interpolation at the places, of `length` pixels at 0, 1, ...; shape (*places, length)."""
    pixels = torch.arange(length, device=places.device)
    return (1 - (places.clamp(0, length - 1)[..., None] - pixels).abs()).clamp_min(0)


def _like(x: Tensor, values: Tensor) -> Tensor:
    """The values in the type and memory format of `x`."""
    return torch.empty_like(x).copy_(values)
