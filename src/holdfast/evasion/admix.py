"""Admix: average the gradient over copies of the image into each of which a little of another image is mixed.

Wang et al., "Admix: Enhancing the Transferability of Adversarial Attacks", ICCV 2021, arXiv:2102.00436, eq. 5: copies
``(x + strength * x') / 2^j``, with x' of other classes. The images mixed in are those of the same call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.evasion.momentum import MomentumAttack, Scene
from holdfast.methods import Paper
from holdfast.models.freeze import fast_layout
from holdfast.run import content_keys

__all__ = ["Admix"]


@dataclass(frozen=True, kw_only=True)
class Admix(
    MomentumAttack,
    id="admix",
    title="Admix",
    paper=Paper(
        title="Admix: Enhancing the Transferability of Adversarial Attacks", arxiv="2102.00436", venue="ICCV", year=2021
    ),
):
    """Mix a little of other images into the copies of `si-fgsm`.

    Fifteen gradients per step. What is mixed in are images of other classes from the same call (of any class, where
    there is no other), drawn anew in each step: the result for an image depends on its company, though not on its
    order or on the batch size. ``admix(lookahead="momentum", diversity=0.5, kernel=5)`` is NI-Admix-TI-DI.

    Args:
        mixed: other images mixed in, each into copies of its own.
        strength: share of them that is added.
    """

    scales: Annotated[int, Field(ge=1, le=32)] = 5
    mixed: Annotated[int, Field(ge=1)] = 3
    strength: Annotated[float, Field(ge=0, le=1)] = 0.2

    joint: ClassVar[bool] = True

    @property
    def copies_shown(self) -> int:
        """Every scale of every mixture."""
        return self.scales * self.mixed

    def copies(self, scene: Scene, x: Float[Tensor, "n c h w"], draw: int) -> list[tuple[float, Tensor]]:
        """The image mixed with others, at several scales."""
        numbers = scene.uniforms(draw, self.mixed, offset=4 + x[0].numel())  # beyond those of the parts
        mixtures = [x + self.strength * self._partners(scene, numbers[:, k]) for k in range(self.mixed)]
        return [pair for mixture in mixtures for pair in super(Admix, self).copies(scene, mixture, draw)]

    def _partners(self, scene: Scene, numbers: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """One image of another class for each, by its number in [0, 1)."""
        images, labels = scene.company
        # Counted in the order of their content, which is the same however the call was ordered.
        order = content_keys(images).argsort()
        fits = labels[order] != scene.y.to(labels.device)[:, None]
        fits |= ~fits.any(1, keepdim=True)
        count = fits.sum(1)
        which = (numbers.to(count.device) * count).long().clamp_max(count - 1)
        place = (fits.cumsum(1) == which[:, None] + 1).long().argmax(1)
        return fast_layout(images[order[place]].float(), scene.x0.device)
