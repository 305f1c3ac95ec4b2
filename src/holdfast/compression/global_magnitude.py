"""Global magnitude pruning: the smallest weights of the whole network go.

Small weights matter least. Ranking all layers together lets each keep what it needs; no per-layer ratio has to be
chosen, and it is the baseline that other criteria must beat.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, arXiv:1506.02626, rank
by magnitude within layers; the ranking across layers is studied by Gupta et al., "Is Complexity Required for Neural
Network Pruning?", 2022, arXiv:2209.14624.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from holdfast.compression.masks import Masks, Pruner, keep_largest, prunable
from holdfast.methods import Paper
from holdfast.run import Run

__all__ = ["GlobalMagnitude"]


@dataclass(frozen=True, kw_only=True)
class GlobalMagnitude(
    Pruner,
    id="global-magnitude",
    title="Global magnitude pruning",
    paper=Paper(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        arxiv="1506.02626",
        venue="NeurIPS",
        year=2015,
    ),
):
    """Zero the weights of smallest magnitude, ranked over all convolutions and linear layers together.

    One shot and without training: fine-tune the result with `HoldMasks` to regain accuracy.

    Args:
        sparsity: share of the prunable weights that become zero, in [0, 1). About 0.9 in the paper.
        keep_first: leave the first convolution or linear layer dense.
        keep_last: leave the last one, usually the classifier, dense.
        recalibrate: training images that batch norm learns its statistics from anew after pruning; 0 for none.
    """

    def masks(self, model: nn.Module, data: Any, sparsity: float, *, run: Run) -> Masks:
        """Keep the largest magnitudes; `data` and `run` are not looked at."""
        weights = prunable(model, keep_first=self.keep_first, keep_last=self.keep_last)
        return keep_largest({name: weight.detach().abs() for name, weight in weights.items()}, sparsity)
