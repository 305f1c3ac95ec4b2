"""The last linear layer as a function of the features before it, for detectors that edit them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError

__all__ = ["energy", "head_state", "logits_from", "wanted"]


def wanted(features: Float[Tensor, "n d"] | None) -> Float[Tensor, "n d"]:
    """Penultimate features, which `FittedDetector` sees to be there where a detector declares to read them."""
    assert features is not None
    return features


def head_state(head: nn.Linear | None, who: str) -> dict[str, Tensor]:
    """The layer's weight (K, D) and bias (K,), for a detector's state.

    Args:
        head: the model's last linear layer.
        who: needs it, for the message.

    Raises:
        UserError: there is none.
    """
    if head is None:
        raise UserError(
            f"{who} reads the model's last linear layer, but the model ends in none; a detector that reads logits, "
            "such as 'energy', will do."
        )
    weight = head.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach().float().cpu()
    return {"weight": weight, "bias": bias}


def logits_from(h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
    """The layer's output for features, in their precision."""
    return torch.addmm(state["bias"].to(h), h, state["weight"].to(h).T)


def energy(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The free energy ``-log sum_k exp z_k``, float64: high where the classifier finds nothing it knows."""
    return -torch.logsumexp(logits.double(), dim=1)
