"""RMIA: is the image more likely under this model than other images are, once what is usual is taken off?

The ratio of the label's probability under the attacked model to its mean under reference models says how much likelier
the model makes the image. The score is the share of the population whose ratio it beats. Works from a single reference
model that has not seen the image.

Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024, arXiv:2312.03262, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast import stats
from holdfast.errors import UserError
from holdfast.methods import Paper
from holdfast.privacy.membership import ShadowAttack
from holdfast.privacy.shadows import Shadows

__all__ = ["RMIA"]

_TRIED = tuple(i / 10 for i in range(11))
_REHEARSALS = 8  # reference models attacked for choosing a
_LEAST = 1e-30  # of a probability that divides


@dataclass(frozen=True, kw_only=True)
class RMIA(
    ShadowAttack,
    id="rmia",
    title="Robust membership inference attack",
    paper=Paper(title="Low-Cost High-Power Membership Inference Attacks", arxiv="2312.03262", venue="ICML", year=2024),
):
    """The share of the population that an image beats in likelihood ratio, by a factor.

    Offline, only models that were not trained on an image are asked for its usual probability p. Those that were would
    give more, so the mean over both is put at ``(1 + a)/2 p + (1 - a)/2``. By default `a` is the best of 0, 0.1, ..., 1
    at attacking reference models in place of the model, which takes four of them. Several views are scored apart and
    averaged.

    A pair of images counts when ``r(x) / r(z) > gamma``, thus when r(z) is below ``r(x) / gamma``: pairs are counted
    by sorting, never formed. So `gamma` and the population move the threshold, and hardly the order of the images.

    Args:
        mode: ``"offline"``, or ``"online"``, which also asks models trained on the image, and needs no `a`.
        gamma: the factor.
        a: how far training on an image raises its probability p, which becomes ``a p + 1 - a``: 1 not at all, 0 to
            certainty; none tunes it.
    """

    mode: Literal["offline", "online"] = "offline"
    gamma: Annotated[float, Field(gt=0)] = 1.0
    a: Annotated[float, Field(ge=0, le=1)] | None = None

    def score(self, log_odds: Float[Tensor, "v n"], shadows: Shadows) -> Float[Tensor, " n"]:
        """The share of the population that each image beats, (N,), float64, in [0, 1].

        Raises:
            UserError: some image has no reference model, `a` cannot be tuned, or the views are not the same.
        """
        if log_odds.shape != shadows.log_odds.shape[1:]:
            raise UserError(
                f"{self.id}: views and images of the attacked model, {tuple(log_odds.shape)}, are not those of the "
                f"reference models, {tuple(shadows.log_odds.shape[1:])}."
            )
        usual = shadows.mean(shadows.probabilities, of="out", who=self.id)
        if self.mode == "online":
            usual = (usual + shadows.mean(shadows.probabilities, of="in", who=self.id)) / 2
            return self._beaten(log_odds, usual, shadows.population)
        a = self.tuned(shadows) if self.a is None else self.a
        return self._beaten(log_odds, _corrected(usual, a), shadows.population)

    def tuned(self, shadows: Shadows) -> float:
        """The `a` that attacks reference models best, by the mean AUC over them.

        Raises:
            UserError: there are too few of them.
        """
        areas = []
        for k in range(min(len(shadows), _REHEARSALS)):
            try:
                target, mine, others = shadows.held_out(k)
            except UserError:
                continue
            known = (~others.members).any(0)
            mine, others = mine[known], others.select(known)
            if mine.any() and not mine.all():
                usual = others.mean(others.probabilities, of="out", who=self.id)
                tried = (self._beaten(target[:, known], _corrected(usual, a), others.population) for a in _TRIED)
                areas.append([stats.auroc(score[~mine].numpy(), score[mine].numpy()) for score in tried])
        if not areas:
            raise UserError(
                f"{self.id}: to tune a, at least four reference models trained on halves of the images are needed, got "
                f"{len(shadows)}; train more, or give a, e.g. rmia(a=0.3)."
            )
        return _TRIED[int(torch.tensor(areas).mean(0).argmax())]

    def _beaten(self, log_odds: Tensor, usual: Tensor, population: Tensor | None) -> Tensor:
        ratio = log_odds.double().sigmoid() / usual.clamp_min(_LEAST)
        everyone = ratio if population is None else ratio[:, population]
        below = torch.searchsorted(everyone.sort(1).values, (ratio / self.gamma).contiguous())
        return (below.double() / everyone.shape[1]).mean(0)


def _corrected(usual: Tensor, a: float) -> Tensor:
    """The mean over models that were trained on an image and models that were not, from the latter alone."""
    return (1 + a) / 2 * usual + (1 - a) / 2
