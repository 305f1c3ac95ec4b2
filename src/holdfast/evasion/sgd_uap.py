"""Universal perturbation by stochastic gradient ascent: one pattern, all images' losses.

Each step climbs the mean cross-entropy of a batch with the pattern added. The loss of an image is capped, or a few
images that are long lost would draw all the effort.

Shafahi et al., "Universal Adversarial Training", AAAI 2020, arXiv:1811.11304, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from holdfast.evasion.balls import steepest
from holdfast.evasion.losses import loss_for
from holdfast.evasion.universal import Crowd, UniversalAttack, onto_ball
from holdfast.methods import Paper

__all__ = ["SGDUAP"]


@dataclass(frozen=True, kw_only=True)
class SGDUAP(
    UniversalAttack,
    id="sgd-uap",
    title="Universal perturbation by gradient ascent",
    paper=Paper(title="Universal Adversarial Training", arxiv="1811.11304", venue="AAAI", year=2020),
):
    """One pattern for all images, by gradient ascent on their capped loss.

    The universal attack to try first: it costs one gradient per image and pass, needs no labels, and is usually as
    strong as or stronger than the original DeepFool procedure (`uap`), which costs far more. The pattern is fitted to
    the images attacked; fit it to others with `fit` to learn what one leaked pattern would do. Images that it does not
    fool may well fall to an attack made for them.

    Args:
        eps: radius of the pattern, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"`` or ``"l2"``.
        step: length of a step, in the units of `eps`; none is a tenth of `eps`.
        epochs: passes over the images.
        batch_size: images per step; a tenth of them, where there are fewer than ten batches.
        cap: the most an image's cross-entropy counts for.
    """

    eps: Annotated[float, Field(ge=0)] = 10 / 255
    norm: Literal["linf", "l2"] = "linf"
    step: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=1)] = 128
    cap: Annotated[float, Field(gt=0)] = 9.0

    def passes(self, crowd: Crowd) -> Iterator[tuple[Tensor, float]]:
        """Climb; the gain is the mean capped loss."""
        step = self.eps / 10 if self.step is None else self.step
        loss = _Capped(self.cap) if crowd.aim == "any" else loss_for("given", "ce")
        v = crowd.zeros()
        for epoch in range(self.epochs):
            total = 0.0
            for rows in crowd.batches(epoch, self.batch_size):
                # The gradient is taken where the images will be, inside the box, and handed straight to the pattern.
                gain, gradient = crowd.slope(rows, (crowd.at(rows) + v).clamp_(0, 1), loss)
                v = onto_ball(v + step * steepest(gradient[None], self.norm)[0], self.eps, self.norm)
                total += float(gain) * len(rows)
                crowd.ticker.advance(len(rows))
            yield v, total / len(crowd)


@dataclass(frozen=True)
class _Capped:
    """The cross-entropy of the predicted class, no larger than `cap`."""

    cap: float

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return loss_for("any", "ce")(logits, y, target).clamp_max(self.cap)
