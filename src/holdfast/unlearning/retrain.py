"""Exact unlearning: train the same architecture again, from new random weights, on what remains.

The reference that every faster method is measured against: what was never seen cannot be remembered. It costs a whole
training.

Recipe of Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934. The seed
matters: the spread of the results over seeds is the noise floor of every comparison with retraining.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from holdfast.data import Images
from holdfast.methods import Paper, Unlearner
from holdfast.models import reinitialised
from holdfast.run import Run
from holdfast.training import SGD, MultiStep, Optimizer, Schedule
from holdfast.unlearning.fine_tuning import Tuning

__all__ = ["Retrain"]


@dataclass(frozen=True, kw_only=True)
class Retrain(
    Tuning,
    Unlearner,
    id="retrain",
    title="Retraining without the forget set",
    paper=Paper(title="Model Sparsity Can Simplify Machine Unlearning", arxiv="2304.04934", venue="NeurIPS", year=2023),
):
    """Train anew on the retained images alone.

    Nothing of the forget set is read, and of the given model nothing but its architecture (and constants such as those
    of its normalisation). Give the recipe by which the model itself was trained.

    Args:
        optimizer: its learning rate is what the schedule scales.
        schedule: of the learning rate; by default it drops tenfold at epochs 91 and 136 of 182.
    """

    epochs: Annotated[int, Field(ge=1)] = 182
    optimizer: Optimizer = SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = MultiStep(at=(0.5, 0.75), gamma=0.1)

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a newly trained model of the same architecture, in evaluation mode.

        Raises:
            UserError: nothing is retained, or some parameter cannot be reinitialised.
        """
        run = run.child("retrain")
        return self.trained(reinitialised(model, run=run), retain, run=run)
