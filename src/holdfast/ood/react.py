"""ReAct: cut activations off where training images seldom reach, then take the energy.

Unknown inputs owe their high logits to a few units that fire far more strongly than they do for known ones. With all
activations limited to one threshold those logits fall, and the known ones hardly change.

Sun et al., "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021, arXiv:2111.12797.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, logits_from, wanted

__all__ = ["ReAct"]


@dataclass(frozen=True, kw_only=True)
class ReAct(
    Detector,
    id="react",
    title="Rectified activations",
    paper=Paper(
        title="ReAct: Out-of-distribution Detection With Rectified Activations",
        arxiv="2111.12797",
        venue="NeurIPS",
        year=2021,
    ),
):
    """High energy of the logits that limited activations give marks an anomaly.

    Args:
        percentile: of the training features, all units together, at which activations are cut off. 100 changes nothing
            within the training features' range; OpenOOD tries 85, 90, 95 and 99.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    percentile: Annotated[float, Field(gt=0, le=100)] = 90.0

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Find the threshold, and keep the head.

        Raises:
            UserError: the model ends in no linear layer.
        """
        # torch.quantile takes no more than 2^24 values.
        threshold = np.percentile(wanted(features.penultimate).cpu().numpy(), self.percentile)
        return {"threshold": torch.tensor(float(threshold)), **head_state(head, self.id)}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign."""
        return energy(logits_from(self.clipped(wanted(features.penultimate), state), state))

    def clipped(self, h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """The activations, cut off at the threshold."""
        return h.clamp(max=float(state["threshold"]))
