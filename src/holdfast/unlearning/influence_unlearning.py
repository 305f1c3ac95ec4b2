"""Influence unlearning: one Newton-like step to where the optimum would be without the forget set.

The gradients of the two sets at the trained weights, and the curvature of the retained images' loss, say how far the
optimum moves when the forget set loses its weight. The curvature is the empirical Fisher information of a sample of
retained images; damped, its inverse times a vector is exact and takes one small linear system.

Izzo et al., "Approximate Data Deletion from Machine Learning Models", AISTATS 2021, arXiv:2002.10077; with the Fisher
information as in Singh and Alistarh, "WoodFisher", NeurIPS 2020, arXiv:2004.14340, by Jia et al., arXiv:2304.04934. The
recursion in the latter's code does not compute the inverse: on random gradients it was off by 0.8 of the solution.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Paper, Unlearner
from holdfast.models.gradients import sample_gradients
from holdfast.run import Run
from holdfast.unlearning.fine_tuning import check_request
from holdfast.unlearning.gradients import mean_gradient

__all__ = ["InfluenceUnlearning", "inverse_fisher_times"]


@dataclass(frozen=True, kw_only=True)
class InfluenceUnlearning(
    Unlearner,
    id="influence-unlearning",
    title="Influence unlearning",
    paper=Paper(
        title="Approximate Data Deletion from Machine Learning Models", arxiv="2002.10077", venue="AISTATS", year=2021
    ),
):
    """Add the influence of removing the forget set, estimated at the trained weights.

    Args:
        alpha: length of the step; 1 is the estimate itself. It holds for convex losses; for deep networks search it.
        samples: retained images whose gradients make up the curvature. Memory: as many times the model's weights.
        damping: added to the curvature's diagonal, in units of its mean entry there. The Fisher information of a well
            trained model is far smaller than its curvature, so a small value overshoots.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    samples: Annotated[int, Field(ge=1)] = 300
    damping: Annotated[float, Field(gt=0)] = 10.0

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten or retained, or the model's gradients cannot be taken one by one.
        """
        check_request(forget, retain)
        run = run.child(self.id)
        share = len(forget) / (len(forget) + len(retain))
        of_forget, of_retain = (mean_gradient(model, images, run=run) for images in (forget, retain))
        # The mean over all images loses the forget set's share and is renormalised over the rest.
        difference = {name: share * (of_forget[name] - of_retain[name]) for name in of_forget}
        names = list(difference)
        vector = torch.cat([difference[name].flatten() for name in names])
        step = inverse_fisher_times(self._gradients(model, retain, names, run), vector, self.damping)
        moved = copy.deepcopy(model).eval()
        weights = dict(moved.named_parameters())
        with torch.no_grad():
            for name, part in zip(names, step.split([difference[name].numel() for name in names]), strict=True):
                weights[name].add_(part.view_as(weights[name]).to(weights[name].device), alpha=self.alpha)
        return moved

    def _gradients(self, model: nn.Module, retain: Images, names: list[str], run: Run) -> Float[Tensor, "n p"]:
        """One row per sampled image: its gradient with respect to all weights."""
        chosen = torch.randperm(len(retain), generator=run.rng("curvature"))[: self.samples]
        twin = copy.deepcopy(model).to(run.torch_device)
        rows = [
            torch.cat([part.flatten(1) for part in sample_gradients(twin, x, y, parameters=names).values()], dim=1)
            for x, y in retain.select(chosen).batches(64, run.torch_device)
        ]
        return torch.cat(rows)


def inverse_fisher_times(
    gradients: Float[Tensor, "n p"], vector: Float[Tensor, " p"], damping: float
) -> Float[Tensor, " p"]:
    """``(G^T G / n + d I)^-1 v``, with ``d`` the damping times the mean of the diagonal of ``G^T G / n``.

    By Woodbury's identity through an (n, n) system, in float64.

    Raises:
        UserError: all gradients are zero, so there is no curvature.
    """
    n, p = gradients.shape
    level = damping * float(gradients.double().square().sum()) / (n * p)
    if not level > 0:
        raise UserError("influence-unlearning: all gradients of the sampled images are zero, so nothing can be told.")
    gram = (gradients @ gradients.T).double()
    inner = torch.linalg.solve(
        n * level * torch.eye(n, dtype=gram.dtype, device=gram.device) + gram, _times(gradients, vector)
    )
    return ((vector.double() - gradients.T.double() @ inner) / level).to(vector.dtype)


def _times(gradients: Tensor, vector: Tensor) -> Tensor:
    return gradients.double() @ vector.double()
