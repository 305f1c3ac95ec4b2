"""The log odds of a class: confidence on a scale that does not saturate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["log_odds", "log_probabilities"]


def log_odds(logits: Float[Tensor, "n k"], classes: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``log(p / (1 - p))`` of the given class of each row, (N,), float64.

    Taken as ``z_c - logsumexp(z_others)``: a probability of 1 - 1e-30 keeps its rank, where ``1 - p`` would be 0.

    Raises:
        UserError: there is a single class, or a logit is not finite.
    """
    z = _checked(logits)
    own = z.gather(1, classes[:, None])
    others = z.scatter(1, classes[:, None], -torch.inf)
    return -torch.logsumexp(others - own, dim=1)


def log_probabilities(logits: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """``log(p)`` and ``log(1 - p)`` of all classes, (N, K) each, float64, exact however sure the model is.

    Only the largest probability can come so close to 1 that the plain formulas cancel; its own come from its log odds.

    Raises:
        UserError: there is a single class, or a logit is not finite.
    """
    top = logits.argmax(1)
    odds = log_odds(logits, top)[:, None]
    p, complement = logits.double().log_softmax(1), logits.double().softmax(1).neg().log1p()
    return (
        p.scatter(1, top[:, None], -F.softplus(-odds, threshold=700)),
        complement.scatter(1, top[:, None], -F.softplus(odds, threshold=700)),
    )


def _checked(logits: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise UserError("membership inference: a model of a single class is sure of every image alike.")
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise UserError(f"membership inference: the logits of {bad} of {len(logits)} images are not finite.")
    return logits.double()
