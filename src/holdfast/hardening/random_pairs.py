"""Random pairs: what self-gMAD must beat with the same number of ratings.

Pairs on one level of the model's own scores, as in gMAD, but drawn by chance instead of by contradiction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from holdfast.data import Images
from holdfast.hardening.gmad import Contest, random_pairs
from holdfast.hardening.self_gmad import SelfGMAD, Variant
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["RandomPairs"]


@dataclass(frozen=True, kw_only=True)
class RandomPairs(SelfGMAD, id="random-pairs", title="Random pairs"):
    """Troubleshooting with pairs chosen at random: the baseline of `self-gmad`.

    Rates as many pairs per round, on the same levels; everything else is alike. Takes the arguments of `self-gmad`.
    """

    def rivals(self, *args: object, **more: object) -> list[Variant]:
        """Nobody competes."""
        return []

    def pairs(
        self, mine: Variant, others: Sequence[Variant], pool: Images, free: Bool[Tensor, " n"], *, run: Run
    ) -> list[Contest]:
        """Draw them."""
        own = predict(mine.model, pool, run=run).flatten()
        top = 2 * self.competitors * self.top
        return random_pairs(own, free, levels=self.levels, top=top, rng=run.rng("pairs"))
