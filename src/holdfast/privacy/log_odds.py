"""The log odds of a class: confidence on a scale that does not saturate."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["log_odds"]


def log_odds(logits: Float[Tensor, "n k"], classes: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``log(p / (1 - p))`` of the given class of each row, (N,), float64.

    Taken as ``z_c - logsumexp(z_others)``: a probability of 1 - 1e-30 keeps its rank, where ``1 - p`` would be 0.
    """
    z = logits.double()
    own = z.gather(1, classes[:, None])
    others = z.scatter(1, classes[:, None], -torch.inf)
    return -torch.logsumexp(others - own, dim=1)
