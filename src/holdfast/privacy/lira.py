"""LiRA: is this model's confidence usual for models that saw the image, or for models that did not?

A small loss says little: some images are easy for every model. LiRA compares the model's log odds of the label with
those of shadow models, image by image, as a likelihood ratio between two normal distributions. That is what makes it
find the few images that are surely members.

Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022, arXiv:2112.03570, Algorithm 1 and
section VI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.errors import UserError
from holdfast.methods import Paper
from holdfast.privacy.membership import ShadowAttack
from holdfast.privacy.shadows import Shadows

__all__ = ["LiRA"]

_LEAST = 1e-12  # a variance where there is none: log odds that all models share to the last bit


@dataclass(frozen=True, kw_only=True)
class LiRA(
    ShadowAttack,
    id="lira",
    title="Likelihood ratio attack",
    paper=Paper(
        title="Membership Inference Attacks From First Principles", arxiv="2112.03570", venue="IEEE S&P", year=2022
    ),
):
    """The likelihood ratio of the log odds of the label, under models trained on the image and models that were not.

    Several views of an image are one observation of a multivariate normal. With few models a covariance of each image
    cannot be estimated, so all share one: the scatter of the models about their means, of each image and kind,
    averaged. The authors' code takes in its place the variance of all log odds together, which also holds how much
    images differ, and medians for means.

    Args:
        mode: ``"online"`` compares both kinds of model; ``"offline"`` asks only how far the log odds, averaged over
            views, lie above those of models that were not trained on the image.
        shared_below: with fewer models than this, all images share a covariance.
    """

    mode: Literal["online", "offline"] = "online"
    shared_below: Annotated[int, Field(ge=1)] = 64

    def score(self, log_odds: Float[Tensor, "v n"], shadows: Shadows) -> Float[Tensor, " n"]:
        """The log likelihood ratio, or, offline, the standardised excess (its normal tail would saturate).

        Raises:
            UserError: some image has fewer than two shadow models of a kind, or the views are not the same.
        """
        if log_odds.shape != shadows.log_odds.shape[1:]:
            raise UserError(
                f"{self.id}: views and images of the attacked model, {tuple(log_odds.shape)}, are not those of the "
                f"shadow models, {tuple(shadows.log_odds.shape[1:])}."
            )
        x, seen = log_odds.double(), shadows.members[:, None]
        mean, scatter, freedom = {}, {}, {}
        for kind, mask in (("out", ~seen), ("in", seen))[: 1 if self.mode == "offline" else 2]:
            count = mask[:, 0].sum(0)
            shadows.require(count, 2, kind, self.id)
            mean[kind] = shadows.mean(shadows.log_odds, of=kind, who=self.id)
            off = (shadows.log_odds - mean[kind]) * mask
            scatter[kind] = torch.einsum("svn,swn->nvw", off, off)
            freedom[kind] = count - 1
        if len(shadows) < self.shared_below:
            shared = torch.cat([*scatter.values()]).sum(0) / torch.cat([*freedom.values()]).sum()
            covariance = {kind: shared.expand_as(s) for kind, s in scatter.items()}
        else:
            covariance = {kind: s / freedom[kind][:, None, None] for kind, s in scatter.items()}
        if self.mode == "offline":
            excess = (x - mean["out"]).mean(0)
            return excess / (covariance["out"].mean((1, 2)).clamp_min(0) + _LEAST).sqrt()
        # Views of a symmetric image agree, which leaves a covariance without an inverse. Both kinds get the same floor,
        # so that it cancels from their ratio.
        spread = (covariance["in"] + covariance["out"]).diagonal(dim1=1, dim2=2).mean(1)
        floor = (1e-6 * spread + _LEAST)[:, None, None] * torch.eye(len(x), dtype=x.dtype)
        inside, outside = (_log_density(x, mean[kind], covariance[kind] + floor) for kind in ("in", "out"))
        return inside - outside


def _log_density(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Log density of the columns of `x` (V, N), up to a constant, each under its own normal."""
    factor = torch.linalg.cholesky(covariance)
    off = torch.linalg.solve_triangular(factor, (x - mean).T[:, :, None], upper=False)[:, :, 0]
    return -(off**2).sum(1) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
