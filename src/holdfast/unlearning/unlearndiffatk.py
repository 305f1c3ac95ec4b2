"""UnlearnDiffAtk: let the unlearned model itself say which tokens explain a picture of what it was to forget.

A model that finds the noise in a picture better with a text than with others holds the text likely for the picture. So
no other model is needed: given one picture of the concept, tokens are searched for with which the victim denoises that
picture best. Each place of the text holds a distribution over the vocabulary. A token is drawn from it, and the
gradient at the drawn token moves the whole distribution, which is projected back on the simplex.

Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images
... For Now", ECCV 2024, arXiv:2310.11868, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.methods import Paper
from holdfast.run import Run
from holdfast.unlearning.projection import capped_simplex
from holdfast.unlearning.prompt_attacks import PromptAttack, Siege

__all__ = ["UnlearnDiffAtk", "one_hot_of"]


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(
    PromptAttack,
    id="unlearndiffatk",
    title="UnlearnDiffAtk",
    paper=Paper(
        title="To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images "
        "... For Now",
        arxiv="2310.11868",
        venue="ECCV",
        year=2024,
    ),
):
    """Search for tokens with which the victim denoises a picture of the concept best.

    The weight decay pulls the distributions towards even ones before each projection; it is part of the method.

    Args:
        start: distributions that are ``"even"``, or drawn at ``"random"``.
    """

    start: Literal["even", "random"] = "even"

    def search(self, siege: Siege, *, run: Run) -> Iterator[Int64[Tensor, "n k"]]:
        """See `PromptAttack`."""
        shape = (len(siege.prompts), siege.count, len(siege.words))
        first = torch.ones(shape) if self.start == "even" else torch.rand(shape, generator=run.rng("distributions"))
        a = capped_simplex(first, 1).to(siege.table)
        adam = torch.optim.Adam([a], lr=self.lr, weight_decay=self.weight_decay)
        for number, t in enumerate(siege.times(self.times)):
            rows = siege.rows
            for iteration in range(self.iterations):
                noise, drawn = (run.rng(name, number, iteration) for name in ("noise", "tokens"))
                e = torch.randn(siege.x0.shape, generator=noise).to(siege.x0)[rows]
                picked = torch.multinomial(a.cpu().flatten(0, 1), 1, generator=drawn).view(shape[:2]).to(a.device)
                weights = a[rows].requires_grad_()
                told = siege.told(one_hot_of(weights, picked[rows]) @ siege.table, rows)
                at = torch.full((len(rows),), t, device=rows.device)
                loss = siege.victim.errors(siege.x0[rows], at, e, told).sum()
                a.grad = torch.zeros_like(a)
                (a.grad[rows],) = torch.autograd.grad(loss, [weights])
                adam.step()
                a.copy_(capped_simplex(a, 1))
            yield siege.words[a.argmax(-1)]


def one_hot_of(weights: Float[Tensor, "n k v"], picked: Int64[Tensor, "n k"]) -> Float[Tensor, "n k v"]:
    """The picked token of each place as a one-hot row; the gradient goes straight to the weights, within [-1, 1]."""
    found: Tensor = _Straight.apply(weights, picked)
    return found


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, picked: Tensor) -> Tensor:
        return F.one_hot(picked, weights.shape[-1]).to(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return F.hardtanh(gradients[0]), None
