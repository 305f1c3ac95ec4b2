"""Fine-tuning on the retained images, trusting that what is no longer rehearsed fades.

The cheapest baseline. With a small learning rate it forgets little, with a large one it costs accuracy: tune it on the
gap to retraining, not on how much is forgotten.

Recipe of Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934; after Warnecke
et al., "Machine Unlearning of Features and Labels", NDSS 2023, arXiv:2108.11577.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from holdfast.data import Images
from holdfast.methods import Paper
from holdfast.run import Run
from holdfast.unlearning.fine_tuning import FineTuning

__all__ = ["FT"]


@dataclass(frozen=True, kw_only=True)
class FT(
    FineTuning,
    id="ft",
    title="Fine-tuning on the retain set",
    paper=Paper(title="Model Sparsity Can Simplify Machine Unlearning", arxiv="2304.04934", venue="NeurIPS", year=2023),
):
    """Train the model on, without the forget set.

    Batch normalisation trains along, so its statistics come to be those of the retained images.
    """

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a fine-tuned copy, in evaluation mode.

        Raises:
            UserError: nothing is retained.
        """
        return self.tuned(model, retain, run=run)
