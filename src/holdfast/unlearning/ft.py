"""Fine-tuning on the retained images, trusting that what is no longer rehearsed fades.

The cheapest baseline. With a small learning rate it forgets little, with a large one it costs accuracy: tune it on the
gap to retraining, not on how much is forgotten.

Recipe of Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934; after Warnecke
et al., "Machine Unlearning of Features and Labels", NDSS 2023, arXiv:2108.11577.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from holdfast.data import Images
from holdfast.methods import BatchTransform, Paper, Unlearner
from holdfast.run import Run
from holdfast.training import SGD, Constant, Crop, Flip, Optimizer, Schedule, fit

__all__ = ["FT"]


@dataclass(frozen=True, kw_only=True)
class FT(
    Unlearner,
    id="ft",
    title="Fine-tuning on the retain set",
    paper=Paper(title="Model Sparsity Can Simplify Machine Unlearning", arxiv="2304.04934", venue="NeurIPS", year=2023),
):
    """Train the model on, without the forget set.

    Batch normalisation trains along, so its statistics come to be those of the retained images.

    Args:
        epochs: passes over the retained images.
        batch_size: images per step.
        optimizer: its learning rate decides how much is forgotten.
        schedule: of the learning rate.
        crop, flip: augmentation of natural images; ``none`` where it does not fit, such as flipping digits.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 256
    optimizer: Optimizer = SGD(lr=0.01, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = Constant()
    crop: BatchTransform | None = Crop(padding=4)
    flip: BatchTransform | None = Flip()

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a fine-tuned copy, in evaluation mode.

        Raises:
            UserError: nothing is retained.
        """
        return fit(
            copy.deepcopy(model),
            retain,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
            transforms=[transform for transform in (self.crop, self.flip) if transform is not None],
            run=run.child("ft"),
        ).model
