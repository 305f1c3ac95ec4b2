"""gMAD: the pairs of images on which two models of scores contradict each other most.

One model defends: it says that two images are about equally good. The other attacks: among such pairs it picks the one
it finds most different. Whatever people say of that pair, one of the two models is wrong.

Ma et al., "Group Maximum Differentiation Competition: Model Comparison with Few Samples", TPAMI 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["CLEAR", "Contest", "levels_of", "nearness", "pairs_between", "random_pairs", "ranked"]

CLEAR = 0.75  # from this share of votes on, one image of a pair is clearly better


@dataclass(frozen=True)
class Contest:
    """A pair of images that two models see differently.

    Args:
        better, worse: positions in the pool, as the attacker sees them.
        level: of the defender's score, from 0, on which both images lie.
        attacks: whether the model under test is the attacker, not the defender.
        discrepancy: by how much more the images differ for the attacker than for the defender, in ranks of [0, 1].
    """

    better: int
    worse: int
    level: int
    attacks: bool
    discrepancy: float

    def wrong(self, p: float) -> tuple[bool, bool]:
        """Whether the model under test, and its rival, are wrong if `p` is the share of votes for `better`.

        The attacker is, unless `better` is clearly better; the defender is, if one of the two is.
        """
        attacker, defender = p < CLEAR, not 1 - CLEAR < p < CLEAR
        return (attacker, defender) if self.attacks else (defender, attacker)


def ranked(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each score's rank, from 0 for the lowest to 1: scores of different models become comparable."""
    return scores.argsort(stable=True).argsort().double() / max(1, len(scores) - 1)


def levels_of(scores: Float[Tensor, " n"], count: int) -> Int64[Tensor, " n"]:
    """The level of each score, of `count` with equally many images."""
    return (ranked(scores) * count).long().clamp_max(count - 1)


def nearness(embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Directions whose products tell how alike two images are: the embeddings less their mean, of length 1."""
    centred = embedding - embedding.mean(0)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


def pairs_between(
    defender: Float[Tensor, " n"],
    attacker: Float[Tensor, " n"],
    free: Bool[Tensor, " n"],
    fresh: Bool[Tensor, " n"],
    *,
    levels: int,
    top: int,
    attacks: bool,
    directions: Float[Tensor, "n d"],
    similarity: float,
) -> list[Contest]:
    """The pairs, up to `top` on each level, that differ most for the attacker.

    Args:
        defender, attacker: scores of the pool by both models, in any units.
        free: images that may be chosen; those chosen are struck off.
        fresh: images that are to be preferred, as long as a level has two; those much like one chosen are struck off.
        levels, top: see above.
        attacks: noted in the contests.
        directions: see `nearness`.
        similarity: images whose directions have a larger product with a chosen one's are much like it.
    """
    level, d, a = levels_of(defender, levels), ranked(defender), ranked(attacker)
    found = []
    for place in range(levels):
        for _ in range(top):
            here = free & (level == place)
            rows = (here & fresh if (here & fresh).count_nonzero() > 1 else here).nonzero().flatten()
            if len(rows) < 2:
                break
            order = a[rows].argsort(stable=True)
            better, worse = int(rows[order[-1]]), int(rows[order[0]])
            discrepancy = float((a[better] - a[worse]) - (d[better] - d[worse]))
            found.append(Contest(better, worse, place, attacks, discrepancy))
            for image in (better, worse):
                fresh &= directions @ directions[image] <= similarity
                free[image] = False
    return found


def random_pairs(
    defender: Float[Tensor, " n"], free: Bool[Tensor, " n"], *, levels: int, top: int, rng: torch.Generator
) -> list[Contest]:
    """Up to `top` random pairs on each level of the defender's scores; those chosen are struck off `free`."""
    level, found = levels_of(defender, levels), []
    for place in range(levels):
        rows = (free & (level == place)).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        for better, worse in rows[: 2 * min(top, len(rows) // 2)].view(-1, 2).tolist():
            found.append(Contest(better, worse, place, attacks=False, discrepancy=0.0))
            free[better] = free[worse] = False
    return found
