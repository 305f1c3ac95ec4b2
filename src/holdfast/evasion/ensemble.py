"""Several models as one: surrogates whose common weaknesses an attack should find.

Liu et al., "Delving into Transferable Adversarial Examples and Black-box Attacks", ICLR 2017, arXiv:1611.02770 (losses
and probabilities); Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, arXiv:1710.06081, section 3.3
(logits, which transfer best).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.losses import Aim, Loss, LossName, loss_for

__all__ = ["Ensemble", "Fusion", "fused_loss"]

Fusion = Literal["logits", "probabilities", "loss"]


class Ensemble(nn.Module):
    """A model whose output is the mean of its members'.

    The cross-entropy of the output is that of the mean logits (``"logits"``) or of the mean probabilities
    (``"probabilities"``, whose logarithms are returned). For ``"loss"`` it would be that of the mean logits again: the
    output is the mean log-probability of each class, whose negative is the mean loss, and only the transfer attacks
    (`holdfast.evasion.momentum`) know that they must not normalise it once more.

    Args:
        members: models from images to logits of the same classes; not copied.
        fusion: what is averaged.
        weights: of the members; scaled to sum to 1. By default all count alike.

    Raises:
        UserError: there are no members, or the weights do not fit.
    """

    weights: Tensor

    def __init__(self, members: Sequence[nn.Module], fusion: Fusion = "logits", weights: Sequence[float] | None = None):
        super().__init__()
        if not members:
            raise UserError("ensemble: at least one model is needed, got none.")
        if fusion not in ("logits", "probabilities", "loss"):
            raise UserError(f"ensemble: fusion must be one of 'logits', 'probabilities', 'loss', got {fusion!r}.")
        given = torch.tensor([1.0] * len(members) if weights is None else list(weights), dtype=torch.float64)
        if len(given) != len(members) or not bool((given >= 0).all()) or not 0 < float(given.sum()) < float("inf"):
            raise UserError(f"ensemble: {len(members)} models need as many weights of at least 0, got {weights!r}.")
        self.members, self.fusion = nn.ModuleList(members), fusion
        self.register_buffer("weights", (given / given.sum()).float())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The fused output."""
        outputs = [member(x) for member in self.members]
        if len({output.shape for output in outputs}) > 1:
            classes = ", ".join(str(output.shape[-1]) for output in outputs)
            raise UserError(f"ensemble: the models must have the same number of classes, got {classes}.")
        stacked = torch.stack(outputs)
        if self.fusion != "logits":
            stacked = stacked.float().log_softmax(-1)
        weights = self.weights.to(stacked).view(-1, 1, 1)
        if self.fusion == "probabilities":
            return (stacked + weights.log()).logsumexp(0)
        return (weights * stacked).sum(0)


def fused_loss(model: nn.Module, aim: Aim, name: LossName) -> Loss:
    """The loss of that name for that aim; for an ensemble that averages losses, the mean of its members'."""
    if isinstance(model, Ensemble) and model.fusion == "loss" and name == "ce":
        return _mean_cross_entropy if aim == "any" else _mean_target_log_probability
    return loss_for(aim, name)


def _mean_cross_entropy(mean_log_probabilities: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(mean_log_probabilities, y, reduction="none")


def _mean_target_log_probability(mean_log_probabilities: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -F.nll_loss(mean_log_probabilities, target, reduction="none")
