"""ASH: prune an input's weak activations, adjust the strong ones, then take the energy.

Most of a late layer's activation is more than a classifier needs. What remains after pruning is made up for what went:
by one common value that keeps the sum (ASH-B), by a factor that is larger the more was pruned (ASH-S), or not at all
(ASH-P).

Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023, arXiv:2209.09858.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, logits_from, wanted
from holdfast.ood.scale import stretched_logits, strongest

__all__ = ["ASH"]


@dataclass(frozen=True, kw_only=True)
class ASH(
    Detector,
    id="ash",
    title="Activation shaping",
    paper=Paper(
        title="Extremely Simple Activation Shaping for Out-of-Distribution Detection",
        arxiv="2209.09858",
        venue="ICLR",
        year=2023,
    ),
):
    """High energy of the logits that shaped activations give marks an anomaly.

    The features must not be negative, as after a ReLU.

    Args:
        variant: ``p`` leaves what remains as it is; ``b`` gives each of them the same value, so that the sum stays;
            ``s`` multiplies them by ``exp(sum before / sum after)``.
        percentile: of an image's activations that is pruned; at least one remains. The paper takes up to 95 on maps
            and hundreds of features; the default is one that 64 features bear, as it leaves 22 of them.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    variant: Literal["p", "b", "s"] = "s"
    percentile: Annotated[float, Field(ge=0, lt=100)] = 65.0

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Keep the head.

        Raises:
            UserError: the model ends in no linear layer.
        """
        return head_state(head, self.id)

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign, and large for ``s`` where much is pruned."""
        h = wanted(features.penultimate)
        values, positions = strongest(h, self.percentile)
        s1, s2 = h.sum(1), values.sum(1)
        if self.variant == "b":
            values = (s1 / values.shape[1])[:, None].expand_as(values)
        pruned = torch.zeros_like(h).scatter(1, positions, values)
        if self.variant == "s":
            return energy(stretched_logits(pruned, s1, s2, state))
        return energy(logits_from(pruned, state))
