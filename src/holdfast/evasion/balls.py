"""The geometry of norm balls around images: start inside, step along the steepest direction, come back.

Every function treats samples independently and works on tensors of shape (N, ...). Radii are in the units of the
pixels, which lie in [0, 1]. Projecting on the ball first and on the box second satisfies both, for the l_inf and the
l_2 norm: the box contains the centre, so clamping never moves a pixel away from it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["SLACK", "Norm", "distance", "project", "steepest", "uniforms_needed", "within"]

Norm = Literal["linf", "l2"]

#: How far beyond its radius rounding in float32 may leave a result.
SLACK: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5}


def distance(x: Tensor, centre: Tensor, norm: Norm) -> Tensor:
    """The norm of ``x - centre`` for each sample, shape (N,), float32."""
    offset = (x.float() - centre.float()).flatten(1)
    return offset.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(offset, dim=1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which the loss grows fastest; overwrites `gradient`.

    A gradient that is zero or not finite gives no direction, hence zeros.
    """
    if norm == "linf":
        return gradient.sign_()  # of NaN it is 0
    torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    # Dividing by the largest entry first keeps the squares of tiny and of huge gradients in range.
    peak = gradient.flatten(1).abs().amax(1).clamp_min_(torch.finfo(gradient.dtype).tiny)
    gradient /= _column(peak, gradient)
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min_(1e-12)
    return gradient.div_(_column(length, gradient))


def project(x: Tensor, centre: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest image to `x` within `eps` of `centre` (for l_2: on the ball, then in the box); overwrites `x`."""
    if norm == "linf":
        return torch.clamp(x, centre - eps, centre + eps, out=x).clamp_(0, 1)
    offset = x.sub_(centre)
    length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
    offset *= _column((eps / length.clamp_min_(1e-12)).clamp_max_(1), offset)
    return offset.add_(centre).clamp_(0, 1)


def uniforms_needed(norm: Norm, pixels: int) -> int:
    """How many uniform numbers per sample `within` consumes."""
    return pixels if norm == "linf" else pixels + 1


def within(centre: Tensor, eps: float, norm: Norm, uniforms: Tensor) -> Tensor:
    """A point drawn uniformly from the ball around each image, clamped to the box.

    Args:
        centre: images (N, C, H, W) in [0, 1].
        eps: radius.
        norm: of the ball.
        uniforms: numbers in [0, 1), shape (N, `uniforms_needed`).

    Returns:
        A new tensor with the memory format of `centre`.
    """
    pixels = centre[0].numel()
    if norm == "linf":
        offset = uniforms.mul(2 * eps).sub_(eps)
    else:
        # Normal numbers by inversion; half a step of the 24-bit grid keeps the argument strictly inside (-1, 1).
        offset = torch.erfinv(uniforms[:, :pixels].mul(2).sub_(1 - 2.0**-24))
        radius = eps * uniforms[:, pixels:] ** (1 / pixels)
        offset *= radius / torch.linalg.vector_norm(offset, dim=1, keepdim=True).clamp_min_(1e-12)
    return project(centre + offset.view(centre.shape), centre, eps, norm)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
