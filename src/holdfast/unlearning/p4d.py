"""P4D: find tokens with which the unlearned model predicts what the original predicts for the concept.

The tokens are searched for as free vectors. In each step the nearest tokens take their place, and the gradient there
moves the vectors. Unlike `unlearndiffatk` it needs the model from before the unlearning.

Chin et al., "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts", ICML
2024, arXiv:2309.06135. Rate, decay and budget are those of the comparison in Zhang et al., 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.errors import UserError
from holdfast.methods import Paper
from holdfast.run import Run
from holdfast.unlearning.prompt_attacks import PromptAttack, Siege

__all__ = ["P4D", "nearest"]


@dataclass(frozen=True, kw_only=True)
class P4D(
    PromptAttack,
    id="p4d",
    title="P4D: Prompting4Debugging",
    paper=Paper(
        title="Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        arxiv="2309.06135",
        venue="ICML",
        year=2024,
    ),
):
    """Search for tokens that make the victim predict what the original predicts for the plain prompt."""

    def search(self, siege: Siege, *, run: Run) -> Iterator[Int64[Tensor, "n k"]]:
        """See `PromptAttack`.

        Raises:
            UserError: the original model is not there.
        """
        if siege.original is None:
            raise UserError(f"{self.id}: it compares the model with the original one, which must be given.")
        shape = (len(siege.prompts), siege.count)
        vectors = siege.table[
            torch.randint(len(siege.words), shape, generator=run.rng("tokens")).to(siege.words.device)
        ]
        adam = torch.optim.Adam([vectors], lr=self.lr, weight_decay=self.weight_decay)
        for number, t in enumerate(siege.times(self.times)):
            rows = siege.rows
            at = torch.full((len(rows),), t, device=rows.device)
            for iteration in range(self.iterations):
                e = torch.randn(siege.x0.shape, generator=run.rng("noise", number, iteration)).to(siege.x0)[rows]
                x_t = siege.victim.schedule.diffuse(siege.x0[rows], at, e)
                with torch.no_grad():
                    target = siege.original(x_t, at, siege.prompts[rows])
                projected = siege.table[nearest(vectors[rows], siege.table)].requires_grad_()
                found = siege.victim(x_t, at, siege.told(projected, rows))
                loss = (found - target).square().flatten(1).mean(1).sum()
                vectors.grad = torch.zeros_like(vectors)
                (vectors.grad[rows],) = torch.autograd.grad(loss, [projected])
                adam.step()
            yield siege.words[nearest(vectors, siege.table)]


def nearest(vectors: Float[Tensor, "n k d"], table: Float[Tensor, "v d"]) -> Int64[Tensor, "n k"]:
    """The place in the table of the row that points most nearly the way each vector does."""
    return (F.normalize(vectors, dim=-1) @ F.normalize(table, dim=-1).T).argmax(-1)
