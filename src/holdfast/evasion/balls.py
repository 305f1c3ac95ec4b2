"""The geometry of norm balls around images: start inside, step along the steepest direction, come back.

Every function treats samples independently and works on tensors of shape (N, ...). Radii are in the units of the
pixels, which lie in [0, 1]. Projecting on the ball first and on the box second satisfies both, for the l_inf and the
l_2 norm: the box contains the centre, so clamping never moves a pixel away from it. For l_1 that would give away much
of the radius, since most of it is spent on pixels that reach the edge of the box; there the projection is onto the
intersection of both (Croce & Hein, "Mind the box", ICML 2021, arXiv:2103.01208, proposition 2.1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["SLACK", "Norm", "distance", "normals", "project", "steepest", "uniforms_needed", "within"]

Norm = Literal["linf", "l2", "l1"]

#: How far beyond its radius rounding in float32 may leave a result.
SLACK: dict[Norm, float] = {"linf": 1e-6, "l2": 1e-5, "l1": 1e-5}

_ROUNDING = (
    2.0**-21
)  # the share of an l_1 radius left unused: a sum of thousands of rounded pixels may exceed it by that
_NEWTON = 12  # passes before bisection takes turns with Newton's method


def distance(x: Tensor, centre: Tensor, norm: Norm) -> Tensor:
    """The norm of ``x - centre`` for each sample, shape (N,), float32."""
    offset = x.float() - centre.float()
    if norm == "linf":  # of any order of the pixels, so no copy is needed to flatten them
        return offset.abs_().amax(tuple(range(1, offset.ndim)))
    offset = offset.flatten(1)
    return torch.linalg.vector_norm(offset, dim=1) if norm == "l2" else offset.abs().sum(1)


def steepest(gradient: Tensor, norm: Norm, share: float | Tensor = 0.02) -> Tensor:
    """The direction of unit norm along which the loss grows fastest; overwrites `gradient`.

    For l_1 that would be a single pixel. Equal steps in the pixels of the largest gradients get ahead much faster and
    cost the same norm (Croce & Hein 2021, section 3.1).

    Args:
        gradient: of the loss. One that is zero or not finite gives no direction, hence zeros.
        norm: that the direction has length one in.
        share: of the pixels that move, for l_1; at least one does. One number, or one for each sample. On two robust
            models (digits, CIFAR-10) 0.02 to 0.05 served PGD best; 0.2 left twice as many images standing.
    """
    if norm == "linf":
        return gradient.sign_()  # of NaN it is 0
    torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    if norm == "l1":
        return _sparse_signs(gradient, share)
    # Dividing by the largest entry first keeps the squares of tiny and of huge gradients in range.
    peak = gradient.flatten(1).abs().amax(1).clamp_min_(torch.finfo(gradient.dtype).tiny)
    gradient /= _column(peak, gradient)
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min_(1e-12)
    return gradient.div_(_column(length, gradient))


def project(x: Tensor, centre: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """The nearest image to `x` within `eps` of `centre` (for l_2: on the ball, then in the box); overwrites `x`.

    `eps` is one radius, or one for each sample.
    """
    if norm == "linf":
        radius = _column(eps, x) if isinstance(eps, Tensor) else eps
        return torch.clamp(x, centre - radius, centre + radius, out=x).clamp_(0, 1)
    offset = x.sub_(centre)
    if norm == "l1":
        return _shrink(offset, centre, eps).add_(centre).clamp_(0, 1)
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
    elif norm == "l2":
        offset = normals(uniforms[:, :pixels])
        radius = eps * uniforms[:, pixels:] ** (1 / pixels)
        offset *= radius / torch.linalg.vector_norm(offset, dim=1, keepdim=True).clamp_min_(1e-12)
    else:
        # d + 1 exponential numbers divided by their sum are the spacings of d sorted uniform ones: d of them, with
        # random signs, fill the ball evenly. One uniform number gives both a sign and an exponential.
        signed = _symmetric(uniforms[:, :pixels])
        offset = signed.sign() * -torch.log1p(-signed.abs())
        rest = -torch.log1p(-uniforms[:, pixels:])
        offset *= eps / (offset.abs().sum(1, keepdim=True) + rest)
    return project(centre + offset.view(centre.shape), centre, eps, norm)


def normals(uniforms: Tensor) -> Tensor:
    """Independent normal numbers from as many uniform ones in [0, 1) of `holdfast.run.uniform_at`, by inversion."""
    return torch.erfinv(_symmetric(uniforms))


def _symmetric(uniforms: Tensor) -> Tensor:
    """Uniform numbers in (-1, 1): half a step of the 24-bit grid keeps them inside, and away from 0."""
    return uniforms.mul(2).sub_(1 - 2.0**-24)


def _sparse_signs(gradient: Tensor, share: float | Tensor) -> Tensor:
    """The signs of the largest entries, divided by their number; overwrites."""
    size = gradient.flatten(1).abs()
    pixels = size.shape[1]
    shares = torch.as_tensor(share, dtype=size.dtype, device=size.device).expand(len(size))
    count = pixels - ((1 - shares) * pixels).clamp(0, pixels - 1).long()
    least = size.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
    gradient.sign_().mul_((size >= least).view(gradient.shape))
    moved = gradient.flatten(1).abs().sum(1).clamp_min_(1)
    return gradient.div_(_column(moved, gradient))


def _shrink(offset: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    """The nearest offsets whose l_1 norm is at most `eps` and that keep ``centre + offset`` in the box; overwrites.

    By the conditions of Karush, Kuhn and Tucker all pixels are pulled towards 0 by one amount per sample, then cut at
    the edge of the box. What is left of the norm falls with that amount, along a line from one break to the next, so
    Newton's method is exact once it is between the right two: mostly after five passes. Bisection helps out.
    """
    sign = offset.sign()
    size = offset.abs().flatten(1)
    room = torch.where(sign > 0, 1 - centre, centre).flatten(1)
    radius = eps[:, None] if isinstance(eps, Tensor) else torch.full_like(size[:, :1], eps)
    radius = radius * (1 - _ROUNDING)
    by = low = torch.zeros_like(radius)
    high = size.amax(1, keepdim=True)
    near, done = _ROUNDING * torch.maximum(radius, high), torch.zeros_like(radius, dtype=torch.bool)
    for attempt in range(60):
        left = size - by
        excess = torch.minimum(left.clamp_min(0), room).sum(1, keepdim=True) - radius
        done = done | (excess.abs() <= near) | ((by == 0) & (excess <= 0))
        if bool(done.all()):
            break
        low, high = torch.where(excess > 0, by, low), torch.where(excess > 0, high, by)
        middle = (low + high) / 2
        newton = by + excess / ((left > 0) & (left < room)).count_nonzero(1)[:, None]
        bad = ~((newton > low) & (newton <= high))
        if attempt >= _NEWTON:
            bad |= attempt % 2 == 0
        by = torch.where(done, by, torch.where(bad, middle, newton))
        spent = ~done & ((middle <= low) | (middle >= high))  # the bracket holds no further number
        by, done = torch.where(spent, low, by), done | spent
    kept = torch.minimum((size - by).clamp_min_(0), room)
    kept *= (radius / kept.sum(1, keepdim=True).clamp_min_(1e-12)).clamp_max_(1)
    return torch.mul(sign, kept.view(sign.shape), out=offset)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
