"""Universal perturbation by DeepFool: visit the images in turn, and add to the pattern what each still lacks.

An image that the pattern does not fool yet is led over the nearest boundary by the least change (DeepFool); that
change joins the pattern, which is then brought back onto its ball. Passes go on until enough images are fooled.

Moosavi-Dezfooli et al., "Universal Adversarial Perturbations", CVPR 2017, arXiv:1610.08401, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.evasion.deepfool import step_to_boundary
from holdfast.evasion.losses import reached
from holdfast.evasion.universal import Crowd, UniversalAttack, onto_ball
from holdfast.methods import Paper

__all__ = ["UAP"]

_AHEAD = 16  # images looked at together for the next one that stands; on a CPU they cost little more than one


@dataclass(frozen=True, kw_only=True)
class UAP(
    UniversalAttack,
    id="uap",
    title="Universal adversarial perturbation",
    paper=Paper(title="Universal Adversarial Perturbations", arxiv="1610.08401", venue="CVPR", year=2017),
):
    """The original universal perturbation: DeepFool steps of many images, gathered in one pattern.

    Sequential by nature, since each image starts from the pattern its predecessors left, hence slow: one DeepFool run
    for every image that stands, in every pass. It serves as the reference that others compare with; `sgd-uap` and
    `fg-uap` give patterns as strong for a fraction of the cost. No labels are needed.

    Args:
        eps: radius of the pattern, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: of that radius: ``"linf"`` or ``"l2"``. DeepFool's own steps are always the shortest in l_2.
        delta: fitting ends once all but this share of the images are fooled.
        epochs: passes at most.
        images: fit to at most this many of the images.
        classes: the likeliest classes whose boundaries DeepFool looks at.
        overshoot: DeepFool goes this share further than the boundary.
        steps: DeepFool's iterations at most; an image that needs more is passed over.
    """

    eps: Annotated[float, Field(ge=0)] = 10 / 255
    norm: Literal["linf", "l2"] = "linf"
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epochs: Annotated[int, Field(ge=1)] = 10
    images: Annotated[int, Field(ge=1)] = 2000
    classes: Annotated[int, Field(ge=2)] = 10
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    steps: Annotated[int, Field(ge=1)] = 8  # the authors run 10, and drop what is not reached before the last two

    @property
    def enough(self) -> float:
        """All but `delta`."""
        return 1 - self.delta

    def passes(self, crowd: Crowd) -> Iterator[tuple[Tensor, float]]:
        """Visit the images in turn; the gain is the share of them that were fooled when their turn came."""
        v = crowd.zeros()
        chosen = crowd.order(self.epochs)[: self.images]
        for epoch in range(self.epochs):
            waiting = crowd.order(epoch)
            waiting = waiting[torch.isin(waiting, chosen)]
            stood, visited = 0, len(waiting)
            while len(waiting):
                ahead = waiting[:_AHEAD]
                standing = (~crowd.fooled(v, ahead, clip=False)).nonzero().flatten()
                # Everyone before the next one that stands is done with; those behind it meet another pattern.
                done = int(standing[0]) + 1 if len(standing) else len(ahead)
                if len(standing):
                    stood += 1
                    move = self._least_move(crowd, ahead[done - 1 : done], v)
                    v = v if move is None else onto_ball(v + move, self.eps, self.norm)
                waiting = waiting[done:]
                crowd.ticker.advance(done)
            yield v, 1 - stood / visited

    def _least_move(
        self, crowd: Crowd, row: Int64[Tensor, " 1"], v: Float[Tensor, "c h w"]
    ) -> Float[Tensor, "c h w"] | None:
        """DeepFool from one image with the pattern added; None unless it gets over the boundary in good time."""
        start = crowd.at(row) + v
        y, target = crowd.goals(row)
        likeliest = crowd.oracle.logits(start).topk(min(self.classes, crowd.classes), dim=1).indices
        away, moved = y, torch.zeros_like(start)
        for _ in range(self.steps):
            planes = likeliest if crowd.aim == "any" else torch.stack([away, target], 1)
            logits, slopes = crowd.oracle.class_gradients(start + (1 + self.overshoot) * moved, planes)
            moved += step_to_boundary(logits, slopes, planes, away, "l2")
            logits = crowd.oracle.logits(start + (1 + self.overshoot) * moved)
            crowd.queries[row] += 2
            crowd.gradients[row] += planes.shape[1]
            if bool(reached(crowd.aim, logits, y, target)):
                return (1 + self.overshoot) * moved[0]
            away = y if crowd.aim == "any" else logits.argmax(1)
        return None
