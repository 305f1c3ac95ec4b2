"""What an attack aims at, and the losses that lead there: one number per sample, from logits, to be maximised.

``ce`` is the cross-entropy of the true class. ``margin`` is how far the best other class is ahead of the true one
(Carlini & Wagner 2017, eq. 6); unlike the cross-entropy it keeps its gradient when the softmax saturates. ``dlr`` is
that margin divided by the spread of the largest logits (Croce & Hein 2020, eqs. 6 and 7), so that neither shifting nor
scaling the logits changes it. Success is always decided by the predicted class, never by the sign of a margin: the two
differ on ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Aim", "Loss", "LossName", "best_other", "goal_margin", "loss_for", "reached"]

LossName = Literal["ce", "margin", "dlr"]

#: ``any``: an error of any kind. ``ranks``: the same, each item led towards one of the likeliest wrong classes.
#: ``given``: one particular class per sample, chosen by the caller.
Aim = Literal["any", "ranks", "given"]

#: (logits, y, target) -> one loss per sample; untargeted losses do not read the target.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def best_other(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The largest logit of a class other than `y`."""
    return logits.scatter(1, y[:, None], -float("inf")).amax(1)


def reached(
    aim: Aim, logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Whether the predicted class is what the attack wants."""
    predicted = logits.argmax(1)
    return predicted == target if aim == "given" else predicted != y


def goal_margin(
    aim: Aim, logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """How near the goal is, comparable between an attack's restarts and targets; positive once it is reached."""
    return _lead(logits, target) if aim == "given" else -_lead(logits, y)


def loss_for(aim: Aim, name: LossName) -> Loss:
    """The loss of that name for that aim."""
    return _LOSSES[aim, name]


def _lead(logits: Tensor, which: Tensor) -> Tensor:
    return _at(logits, which) - best_other(logits, which)


def _at(logits: Tensor, which: Tensor) -> Tensor:
    return logits.gather(1, which[:, None]).squeeze(1)


def _cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _error_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -_lead(logits, y)


def _target_log_probability(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -F.cross_entropy(logits, target, reduction="none")


def _target_over_truth(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Gowal et al. 2019 (MultiTargeted): the target need not become the prediction, any error will do."""
    return _at(logits, target) - _at(logits, y)


def _target_lead(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _lead(logits, target)


def _ratio(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -_lead(logits, y) / _spread(logits)


def _target_over_truth_ratio(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _target_over_truth(logits, y, target) / _targeted_spread(logits)


def _target_lead_ratio(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _target_lead(logits, y, target) / _targeted_spread(logits)


def _spread(logits: Tensor) -> Tensor:
    """How far the first logit is ahead of the third."""
    top = _largest(3, logits, "loss 'dlr'")
    return top[:, 0] - top[:, 2] + _TINY


def _targeted_spread(logits: Tensor) -> Tensor:
    """How far the first logit is ahead of the mean of the third and fourth."""
    top = _largest(4, logits, "targeted loss 'dlr'")
    return top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY


def _largest(count: int, logits: Tensor, which: str) -> Tensor:
    if logits.shape[1] < count:
        raise UserError(
            f"the {which} compares {count} classes, but the model has {logits.shape[1]}; take 'ce' or 'margin'."
        )
    return logits.topk(count, dim=1).values


_TINY = 1e-12  # the ratio of nothing to nothing is 0

_LOSSES: dict[tuple[Aim, LossName], Loss] = {
    ("any", "ce"): _cross_entropy,
    ("any", "margin"): _error_margin,
    ("any", "dlr"): _ratio,
    ("ranks", "ce"): _target_log_probability,
    ("ranks", "margin"): _target_over_truth,
    ("ranks", "dlr"): _target_over_truth_ratio,
    ("given", "ce"): _target_log_probability,
    ("given", "margin"): _target_lead,
    ("given", "dlr"): _target_lead_ratio,
}
