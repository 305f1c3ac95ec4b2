"""Projection on weights between 0 and 1 that have a given sum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["capped_simplex"]

_HALVINGS = 100


def capped_simplex(a: Float[Tensor, "*rows n"], total: float) -> Float[Tensor, "*rows n"]:
    """The nearest point to each row of `a` with entries in [0, 1] and the sum `total`, float64.

    It is ``clip(a - mu, 0, 1)`` for the `mu` that gives the sum, found by bisection. In float32 the sum of many entries
    would be lost.

    Raises:
        UserError: no such point exists, or an entry is not finite.
    """
    if not 0 <= total <= a.shape[-1]:
        raise UserError(f"projection: {a.shape[-1]} weights in [0, 1] cannot sum to {total:g}.")
    a = a.double()
    if not torch.isfinite(a).all():
        raise UserError("projection: a weight is not finite.")
    low, high = a.amin(-1, keepdim=True) - 1, a.amax(-1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_many = (a - middle).clamp(0, 1).sum(-1, keepdim=True) > total
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (a - (low + high) / 2).clamp(0, 1)
