"""What shadow models say of a pool of images, and which of them were trained on which."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Shadows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """S shadow models' answers to V views of N images.

    Args:
        log_odds: of the labels, float64 (S, V, N), finite.
        members: bool (S, N), whether a model was trained on an image.
        population: bool (N,), the images that stand for all others, with which `rmia` compares; by default all do.

    Raises:
        UserError: the shapes do not fit, or a value is not finite.
    """

    log_odds: Float[Tensor, "s v n"]
    members: Bool[Tensor, "s n"]
    population: Bool[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.log_odds.shape)
        if len(shape) != 3 or tuple(self.members.shape) != (shape[0], shape[2]) or self.members.dtype != torch.bool:
            raise UserError(
                f"shadows: log odds of shape (models, views, images) need booleans of shape (models, images), got "
                f"{shape} and {self.members.dtype} of shape {tuple(self.members.shape)}."
            )
        if 0 in shape:
            raise UserError(f"shadows: there are {shape[0]} models, {shape[1]} views and {shape[2]} images.")
        if self.population is not None and (self.population.shape != shape[2:] or not self.population.any()):
            raise UserError("shadows: the population must be a boolean for each image, at least one of them true.")
        bad = int((~torch.isfinite(self.log_odds)).sum())
        if bad:
            raise UserError(f"shadows: {bad} of {self.log_odds.numel()} log odds are not finite.")

    def __len__(self) -> int:
        return len(self.log_odds)

    @property
    def probabilities(self) -> Float[Tensor, "s v n"]:
        """The labels' probabilities, float64 (S, V, N)."""
        return self.log_odds.sigmoid()

    def select(self, which: Any) -> Shadows:
        """What the models say of the images at the given positions, or where a boolean mask is true."""
        population = None if self.population is None else self.population[which]
        return Shadows(log_odds=self.log_odds[..., which], members=self.members[:, which], population=population)

    def only(self, models: Any) -> Shadows:
        """What the models at the given positions say, or those where a boolean mask is true."""
        return dataclasses.replace(self, log_odds=self.log_odds[models], members=self.members[models])

    def held_out(self, model: int) -> tuple[Float[Tensor, "v n"], Bool[Tensor, " n"], Shadows]:
        """One of the models as the attacked one: its log odds, its members, and the others.

        A model trained on exactly the other images is left out, since what it saw tells what the attacked one did not.

        Raises:
            UserError: no other model is left.
        """
        mine = self.members[model]
        others = ~(self.members == ~mine).all(1)
        others[model] = False
        if not others.any():
            raise UserError(f"shadows: to attack one of {len(self)} models, there must be others; train at least four.")
        return self.log_odds[model], mine, self.only(others)

    def mean(self, values: Float[Tensor, "s v n"], *, of: str, who: str) -> Float[Tensor, "v n"]:
        """The mean of values over the models that were trained on each image (``"in"``), or were not (``"out"``).

        Raises:
            UserError: for some image there is no such model; `who` asks.
        """
        mask = self.members if of == "in" else ~self.members
        counts = mask.sum(0)
        self.require(counts, 1, of, who)
        return (values * mask[:, None]).sum(0) / counts

    def require(self, counts: Tensor, least: int, of: str, who: str) -> None:
        """Verify that every image has at least so many models.

        Raises:
            UserError: some image has fewer.
        """
        short = int((counts < least).sum())
        if short:
            kind = "trained on it" if of == "in" else "not trained on it"
            raise UserError(
                f"{who}: every image needs at least {least} shadow model{'s' * (least > 1)} {kind}, but {short} of "
                f"{len(counts)} have fewer; train more than {len(self)}."
            )
