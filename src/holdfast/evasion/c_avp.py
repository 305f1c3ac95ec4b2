"""C-AVP: one learned prompt per class; the class whose own prompt makes the network surest of it is the answer.

No weight of the network changes. Each prompt is learned from the images of its class, clean and attacked, and three
margins keep the prompts apart: a wrong prompt must not claim its class for an image.

Chen et al., "Visual Prompting for Adversarial Robustness", ICASSP 2023, arXiv:2210.06284, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.losses import best_other
from holdfast.evasion.prompts import Prompted, PromptGuard
from holdfast.methods import Paper
from holdfast.training import Step

__all__ = ["CAVP", "class_margins", "own_odds"]


@dataclass(frozen=True, kw_only=True)
class CAVP(
    PromptGuard,
    id="c-avp",
    title="Class-wise adversarial visual prompting",
    paper=Paper(title="Visual Prompting for Adversarial Robustness", arxiv="2210.06284", venue="ICASSP", year=2023),
):
    """A guard of one border of pixels per class, learned around a network that stays as it is.

    For a network that cannot be trained again. It costs clean accuracy, and K passes per image where the network has K
    classes. What it gains holds against attacks on the network alone, which do not know the prompts; that is how the
    paper and its code test. An attacker who knows them searches through clipping, prompts and answer, and takes much of
    it back, on digits down to what one prompt gives: measure with ``holdfast attack --adaptive`` or
    `holdfast.evasion.adaptive.informed`.

    Losses are means over the images of each class, summed over the classes of the batch, so that a prompt learns as
    fast as a single one would. The paper keeps the epoch with the best mean of clean and robust test accuracy; the last
    is kept here, since test images are not to be learned from.

    Args:
        beta: weight of the three margins that keep the prompts apart.
        tau: a margin of more than this, in confidence, is enough.
    """

    beta: Annotated[float, Field(ge=0)] = 3.0
    tau: Annotated[float, Field(ge=0, le=1)] = 0.1

    def count(self, classes: int) -> int:
        """One per class."""
        if classes < 2:
            raise UserError(f"c-avp: the model must tell at least 2 classes apart, got {classes}.")
        return classes

    def own(self, y: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The prompt of the class."""
        return y

    def answer(self, logits: Float[Tensor, "n k k"]) -> Float[Tensor, "n k"]:
        """The logarithm of each class's confidence under its own prompt.

        The largest is the paper's answer. As logits these mean what they should: attacks on the margin compare what the
        answer compares, softmax gives confidences that sum to one, and without prompts it gives those of the network.
        """
        if logits.shape[1] != logits.shape[2]:
            raise UserError(
                f"c-avp: the model gives {logits.shape[2]} logits, and there are {logits.shape[1]} prompts."
            )
        return F.logsigmoid(own_odds(logits.float()))

    def stand_in(self, guarded: Prompted) -> nn.Module:
        """The odds in place of the confidences.

        The cross-entropy of confidences is nearly flat in one that is close to 1, which hides the way down: on digits
        93 % of the images withstood PGD on it, and 68 % on that of the odds. Prompts and clipping hide nothing.
        """
        return _Odds(guarded)

    def loss(self, lesson: nn.Module, x: Tensor, y: Tensor, attacked: Float[Tensor, "n k"], step: Step) -> Tensor:
        """Cross-entropy, clean and attacked, under the own prompt, and `beta` times the margins."""
        classes = attacked.shape[1]
        if self.beta:
            logits = lesson(x).float().view(len(x), classes, classes)
            step.seen(own_odds(logits))
            clean = logits[torch.arange(len(y), device=y.device), y]
            apart = class_margins(logits.softmax(2), y, self.tau).sum()
        else:  # the other prompts need not be looked at
            clean, apart = lesson(x, y).float(), attacked.new_zeros(())
        entropy = F.cross_entropy(clean, y, reduction="none") + F.cross_entropy(attacked, y, reduction="none")
        per_class = 1 / torch.bincount(y, minlength=classes)[y]
        return (per_class * entropy).sum() + self.beta * apart


def own_odds(logits: Float[Tensor, "n k k"]) -> Float[Tensor, "n k"]:
    """The logarithm of the odds of each class under its own prompt, ``log(f_k[k] / (1 - f_k[k]))``.

    They are ordered as the confidences are, and do not saturate: of two classes that are both certain to the last bit
    of their confidence, one is still surer.
    """
    same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits.masked_fill(same, -float("inf")).logsumexp(2)
    return logits.diagonal(dim1=1, dim2=2) - others


class _Odds(nn.Module):
    """The guarded model with the odds of the classes as logits: the same labels."""

    def __init__(self, guarded: Prompted):
        super().__init__()
        self.guarded = guarded

    def forward(self, x: Tensor) -> Tensor:
        return own_odds(self.guarded.under_each(x).float())


def class_margins(confidences: Float[Tensor, "n k k"], y: Int64[Tensor, " n"], tau: float) -> Float[Tensor, " three"]:
    """The paper's C1, C2 and C3: hinges on confidences, averaged for each class and summed over classes.

    C1: no other class, under its own prompt, is surer than the true one. C2: the prompt of another class makes its
    class not the surest one. C3: no other prompt serves the true class better than its own. A class that no image
    belongs to (for C2: that all belong to) adds nothing.

    Args:
        confidences: softmax of the logits under each prompt; prompts first, then classes.
        y: labels.
        tau: how far below zero a hinge rewards.
    """
    count, classes = len(y), confidences.shape[1]
    sizes = torch.bincount(y, minlength=classes)
    diagonal = confidences.diagonal(dim1=1, dim2=2)
    own = diagonal.gather(1, y[:, None]).squeeze(1)
    under_own = best_other(diagonal, y) - own
    of_true = confidences.gather(2, y[:, None, None].expand(-1, classes, 1)).squeeze(2)
    by_others = best_other(of_true, y) - own
    same = torch.eye(classes, dtype=torch.bool, device=y.device)
    claims = diagonal - confidences.masked_fill(same, -1.0).amax(2)
    foreign = y[:, None] != torch.arange(classes, device=y.device)
    return torch.stack(
        [
            (under_own.clamp(min=-tau) / sizes[y]).sum(),
            (claims.clamp(min=-tau) * foreign / (count - sizes).clamp(min=1)).sum(),
            (by_others.clamp(min=-tau) / sizes[y]).sum(),
        ]
    )
