"""The nearest point of a hyperplane within the box [0, 1]: what attacks that linearise a boundary step to.

All pixels move together, in proportion to one number, until they reach the edge of the box. How far the plane comes
nearer is a concave, piecewise linear function of that number, so Newton's method from below finds its root exactly
after a few passes, without sorting. For the l_1 norm pixels move one after the other, the most effective first.

Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
arXiv:1907.02044, section 2 (which sorts).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["dual_norm", "inner", "onto_plane"]

_PASSES = 50  # 3 to 6 are usual
_CLOSE = 1e-6  # of the way left; what float32 resolves


def onto_plane(
    point: Float[Tensor, "n c h w"], normal: Float[Tensor, "n c h w"], way: Float[Tensor, " n"], norm: str
) -> Float[Tensor, "n c h w"]:
    """The smallest offset d with ``<normal, d> = way`` for which ``point + d`` stays in the box.

    Where no point of the box lies on the plane, the offset to the one that comes nearest.

    Args:
        point: images in [0, 1].
        normal: finite.
        way: how much the inner product with the normal has to grow; of either sign.
        norm: in which the offset is smallest, ``"linf"``, ``"l2"`` or ``"l1"``.
    """
    towards = _flat(normal * way.sign()[:, None, None, None])
    sign = towards.sign()
    # Up to 1 where the pixel grows, else down to 0. Written without masks, here and below: on a CPU they take
    # ten times as long as arithmetic.
    room = sign.clamp_min(0).sub_(_flat(point)).abs_()
    # Divided by the largest entry, so that the squares of tiny gradients do not vanish.
    gain = towards.abs()
    peak = gain.amax(1).clamp_min(torch.finfo(towards.dtype).tiny)
    gain.div_(peak[:, None])
    wanted = way.abs() / peak
    length = _one_by_one(gain, room, wanted) if norm == "l1" else _together(gain, room, wanted, norm)
    return _like(length.mul_(sign), point)


def dual_norm(normal: Float[Tensor, "*n c h w"], norm: str) -> Float[Tensor, "*n"]:
    """The norm by which to divide a difference of values to have the distance to a plane."""
    flat = normal.flatten(-3)
    if norm == "linf":
        return flat.abs().sum(-1)
    return flat.abs().amax(-1) if norm == "l1" else torch.linalg.vector_norm(flat, dim=-1)


def inner(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """The inner products of the rows."""
    return _flat(a * b).sum(1)


def _together(gain: Tensor, room: Tensor, wanted: Tensor, norm: str) -> Tensor:
    """Pixel i moves by the smaller of its room and ``scale * speed_i``; find the scale. l_inf: all speeds are 1."""
    power = gain * gain if norm == "l2" else gain
    scale = torch.zeros_like(wanted)
    length = torch.zeros_like(gain)
    left, going = wanted.clone(), wanted > 0
    for _ in range(_PASSES):
        slope = torch.sub(room, length).sign_().mul_(power).sum(1)  # of the pixels that have room left
        # Tangents lie above a concave function, hence no step goes beyond the root. Rows that are there stay: a row
        # must not depend on how many passes the others need.
        going = going & (left > _CLOSE * wanted) & (slope > 0)
        if not going.any():
            break
        scale = torch.where(going, scale + left / slope.clamp_min(torch.finfo(slope.dtype).tiny), scale)
        length = torch.minimum(gain * scale[:, None] if norm == "l2" else scale[:, None], room)
        left = wanted - (gain * length).sum(1)
    return length


def _one_by_one(gain: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Pixels use up their room in the order of their gain."""
    order = gain.argsort(dim=1, descending=True, stable=True)
    gain, room = gain.gather(1, order), room.gather(1, order)
    gained = (gain * room).cumsum(1)
    before = torch.cat([torch.zeros_like(gained[:, :1]), gained[:, :-1]], 1)
    share = (wanted[:, None] - before) / gain.clamp_min(torch.finfo(gain.dtype).tiny)
    length = torch.where(gain > 0, torch.minimum(share.clamp_min(0), room), 0)
    return torch.zeros_like(length).scatter_(1, order, length)


def _flat(x: Tensor) -> Tensor:
    """One row per image, in the order in which channels-last images lie in memory."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _like(flat: Tensor, images: Tensor) -> Tensor:
    n, c, h, w = images.shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)
