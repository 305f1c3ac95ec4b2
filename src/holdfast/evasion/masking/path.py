"""What the course of one attack says: whether it was over when it ended, and whether its successes count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.evasion.balls import project, within
from holdfast.evasion.losses import loss_for
from holdfast.evasion.masking.sign import Sign, share, sign
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pgd import PGD
from holdfast.run import Run, content_keys, uniform_at

__all__ = ["path_signs", "unfinished"]

_LAST = 10
_FELL = 0.05
_LONG = 30  # steps, at least: of a short attack the last steps are the better part


def unfinished(losses: Float[Tensor, "n t"], last: int = _LAST) -> Bool[Tensor, " n"]:
    """Which attacks were still getting ahead when they ended (incomplete optimisation, Pintor et al. 2022).

    Args:
        losses: that each attack minimised, at each of its steps; scaled to [0, 1] here.
        last: steps at the end that should not have brought anything.

    Returns:
        Whether the running minimum fell by more than 0.05 of the range in the last steps.
    """
    low, high = losses.aminmax(dim=1)
    best = losses.cummin(dim=1).values
    fell = best[:, max(best.shape[1] - 1 - last, 0)] - best[:, -1]
    return fell > _FELL * (high - low)


def path_signs(oracle: Oracle, x: Tensor, y: Tensor, run: Run, eps: float, steps: int) -> list[Sign]:
    """The signs that one ascent of the margin gives, recorded step by step."""
    margin, steps = loss_for("any", "margin"), max(steps, _LONG)
    length = PGD(eps=eps, steps=steps).step_length
    at = within(x, eps, "linf", uniform_at(run.seed_for("path"), content_keys(x), x[0].numel()))
    suspect = x.clone()
    left = torch.arange(len(x), device=x.device)  # those not fooled so far; only their course matters
    losses = torch.empty(len(x), steps, device=x.device)
    for step in range(steps):
        logits, loss, gradient = oracle.gradient(at[left], margin, y[left], y[left])
        losses[left, step] = -loss
        fooled = logits.argmax(1) != y[left]
        suspect[left[fooled]] = at[left[fooled]]
        left, gradient = left[~fooled], gradient[~fooled]
        if not len(left):
            break
        at[left] = project(at[left] + length * gradient.sign(), x[left], eps, "linf")
    going_on, taken = torch.zeros(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.bool, device=x.device)
    taken[left] = False
    if len(left):
        going_on[left.cpu()] = unfinished(losses[left]).cpu()
    denied = taken & (oracle.verdicts(suspect).argmax(1) == y)
    return [
        sign(
            "denied-success",
            share(denied),
            0.02,
            "warn",
            "Images that an attack takes for fooled and that the model, asked again, classifies rightly.",
            "Average over draws (holdfast.evasion.adaptive.Expectation), or attack the deployed model end to end.",
        ),
        sign(
            "unfinished-attack",
            share(going_on),
            0.5,  # a third on adversarially trained ResNet-20s, on which five times the steps find nothing more
            "warn",
            f"Images that stand, and whose margin still fell by a twentieth of its range in the last {_LAST} of "
            f"{steps} steps.",
            "apgd(steps=100)",
        ),
    ]
