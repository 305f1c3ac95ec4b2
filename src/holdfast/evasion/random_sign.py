"""Random signs: the pattern that every universal attack must beat.

Each pixel goes up or down by the same amount, decided by a coin. On small images that alone changes many predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.evasion.universal import Crowd, UniversalAttack

__all__ = ["RandomSign"]


@dataclass(frozen=True, kw_only=True)
class RandomSign(UniversalAttack, id="random-sign", title="Random signs"):
    """One pattern of random signs, the best of a few draws, for all images.

    A baseline, not an attack: what it fools is the least that an attack of the same radius has to. To compare
    fairly, average `fit` over several seeds, with one draw each.

    Args:
        eps: radius of the pattern, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, where every pixel moves by `eps`, or ``"l2"``.
        epochs: draws.
    """

    eps: Annotated[float, Field(ge=0)] = 10 / 255
    norm: Literal["linf", "l2"] = "linf"
    epochs: Annotated[int, Field(ge=1)] = 1

    def passes(self, crowd: Crowd) -> Iterator[tuple[Tensor, float]]:
        """Draw; there is nothing to gain but what is fooled by chance."""
        pixels = crowd.x[0].numel()
        size = self.eps if self.norm == "linf" else self.eps / pixels**0.5
        for draw in range(self.epochs):
            coins = torch.randint(2, crowd.x.shape[1:], generator=crowd.run.rng("signs", draw))
            crowd.ticker.advance(len(crowd))
            yield (2 * coins - 1).float().mul(size).to(crowd.oracle.device), 0.0
