"""SalUn: unlearn only through the weights that the forget set matters most to.

The gradient of the forgetting loss at the trained weights ranks all weights. The upper half may move, in a fine-tuning
with random labels for the forget set; the rest stays exactly as it was. Setting gradients to zero is not enough for
that, since weight decay and momentum move weights too, so they are put back after every step.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and
Generation", ICLR 2024, arXiv:2310.12508, equations 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.methods import Callback, Paper
from holdfast.run import Run
from holdfast.unlearning.gradients import FreezeExcept, mean_gradient, most_salient
from holdfast.unlearning.random_label import RandomLabel

__all__ = ["SalUn"]


@dataclass(frozen=True, kw_only=True)
class SalUn(
    RandomLabel,
    id="salun",
    title="SalUn: saliency unlearning",
    paper=Paper(
        title="SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification "
        "and Generation",
        arxiv="2310.12508",
        venue="ICLR",
        year=2024,
    ),
):
    """Random-label fine-tuning confined to salient weights.

    Args:
        share: fraction of the weights that may move, in (0, 1]; with 1 it is `random-label`.
        masking: ``"hard"``, or the paper's ``"soft"`` variant: any weight may move, but after each step the smallest
            moves are taken back, a share of ``1 - share`` at first and none at the end.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    masking: Literal["hard", "soft"] = "hard"

    def _callbacks(self, model: nn.Module, forget: Images, run: Run) -> Sequence[Callback]:
        if self.share == 1:
            return ()
        if self.masking == "soft":
            return (_Proximal(1 - self.share),)
        # The sign of the loss makes no difference to the size of its gradient.
        return (FreezeExcept(most_salient(mean_gradient(model, forget, run=run), self.share)),)


class _Proximal(Callback):
    """Soft thresholding of what the weights have moved, with a threshold that holds a shrinking share of them back."""

    def __init__(self, held: float):
        self.held = held

    def __str__(self) -> str:
        return f"proximal, {self.held} held at first"

    def on_start(self, state: Any) -> None:
        """Remember the weights of the very start, in what is saved with the training."""
        weights = {name: p.detach().clone() for name, p in state.model.named_parameters() if p.requires_grad}
        state.memory.setdefault("salun.start", weights)

    @torch.no_grad()
    def on_step(self, state: Any) -> None:
        """Take the smallest moves back and shorten the others by as much."""
        start = state.memory["salun.start"]
        weights = {name: p for name, p in state.model.named_parameters() if name in start}
        moves = {name: p - start[name] for name, p in weights.items()}
        held = self.held * (1 - state.index / state.steps)
        threshold = _quantile([move.abs() for move in moves.values()], held)
        for name, p in weights.items():
            p.copy_(start[name] + moves[name].sign() * (moves[name].abs() - threshold).clamp(min=0))


def _quantile(parts: list[Tensor], share: float) -> Tensor:
    """The value that a share of all entries does not exceed; 0 for none."""
    flat = torch.cat([part.flatten() for part in parts])
    count = round(share * len(flat))
    return flat.kthvalue(count).values if count else flat.new_zeros(())
