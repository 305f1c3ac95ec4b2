"""RankFeat: an anomaly's confidence hangs on the leading singular vectors of its maps; take them away and it is gone.

Out-of-distribution maps have a far larger first singular value than known ones, and it decides their class. The network
is run on from its last two stages with the first singular triple of each map removed, and the energy of the two mean
logits is the score.

Song et al., "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection", NeurIPS 2022, arXiv:2209.08590.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Paper
from holdfast.models import Seen
from holdfast.models.stages import as_maps, as_rows, logits_after, stages
from holdfast.ood.network import NetworkDetector
from holdfast.run import Run

__all__ = ["RankFeat"]

_AT_ONCE = 2**19  # numbers of a map: they stay in the cache while their singular vectors are sought
_UNCHECKED = 5  # steps of the power method between two normalisations


@dataclass(frozen=True, kw_only=True)
class RankFeat(
    NetworkDetector,
    id="rankfeat",
    title="RankFeat",
    paper=Paper(
        title="RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection",
        arxiv="2209.08590",
        venue="NeurIPS",
        year=2022,
    ),
):
    """High free energy of the logits that are left without the maps' first singular triple marks an anomaly.

    Besides the pass of the images themselves, the layers after each of the maps run once more.

    Args:
        temperature: of the energy.
        iterations: of the power method; the paper's 20 come close to the exact triple.
        maps: names of the layers to edit, from which the logits must follow alone. By default the ends of the last two
            stages, as in the paper.
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=1)] = 20
    maps: tuple[str, ...] = ()

    def layers(self, model: nn.Module) -> Sequence[str]:
        """The layers named, or the ends of the last two stages.

        Raises:
            UserError: none are named, and the model has no maps.
        """
        names = self.maps or tuple(stages(model)[-2:])
        if not names:
            raise UserError("rankfeat edits maps inside of the model, but found none; name layers in 'maps'.")
        return names

    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n 1"]:
        """The free energy of the mean of the logits that follow from each edited map."""
        edited = {name: without_first(maps, self.iterations) for name, maps in seen.layers.items()}
        logits = logits_after(seen.model, edited, seen.x)
        mean = torch.stack([logits[name] for name in edited]).double().mean(0) / self.temperature
        return -self.temperature * torch.logsumexp(mean, dim=1, keepdim=True)


def without_first(maps: Tensor, iterations: int) -> Tensor:
    """Each map less its first singular triple, the map being a matrix of channels by pixels.

    The power method runs on the smaller of ``X X^T`` and ``X^T X``, from a start that is always the same.

    Args:
        maps: (N, C, H, W), or tokens (N, T, C).
        iterations: steps of the power method.
    """
    rows = as_rows(maps)
    size = max(1, _AT_ONCE // rows[0].numel())
    return as_maps(torch.cat([_without_first(part, iterations) for part in rows.split(size)]), like=maps)


def _without_first(rows: Float[Tensor, "n p c"], iterations: int) -> Float[Tensor, "n p c"]:
    tall = rows.shape[1] >= rows.shape[2]
    gram = torch.bmm(rows.mT, rows) if tall else torch.bmm(rows, rows.mT)
    # The largest eigenvalue of a matrix of trace 1 lies between 1 over its size and 1: a few steps neither overflow nor
    # vanish. On a CPU sums of products take a third of the time of a product of matrices with one column.
    gram /= gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    direction = torch.randn(gram.shape[1], generator=Run().rng("rankfeat")).to(gram).expand(len(gram), -1)
    for step in range(1, iterations + 1):
        direction = (gram * direction[:, None]).sum(2)
        if step % _UNCHECKED == 0 or step == iterations:
            direction = F.normalize(direction, dim=1)
    vector = direction[:, :, None]
    # s u v^T = (X v) v^T = u (u^T X): a projection takes the triple away, and the other vector is not needed.
    return rows - (torch.bmm(rows @ vector, vector.mT) if tall else torch.bmm(vector, vector.mT @ rows))
