"""VRA: limit each unit's activation to its usual range, from below as well as from above, then take the energy.

`react` cuts high activations; low ones tell as much about unknown inputs.

Xu et al., "VRA: Variational Rectified Activation for Out-of-distribution Detection", NeurIPS 2023, arXiv:2302.11716.
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

from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, logits_from, wanted

__all__ = ["VRA"]


@dataclass(frozen=True, kw_only=True)
class VRA(
    Detector,
    id="vra",
    title="Variational rectified activation",
    paper=Paper(
        title="VRA: Variational Rectified Activation for Out-of-distribution Detection",
        arxiv="2302.11716",
        venue="NeurIPS",
        year=2023,
    ),
):
    """High energy of the logits that activations within their range give marks an anomaly.

    This is the form in use today: activations under the range are raised to its lower end. The paper's own VRA-P sets
    them to zero. For units that rest at zero on many training images the two are the same.

    Args:
        low, high: percentiles of each unit's activation on training images, low under high. OpenOOD takes them over
            all units together, 10 and 90.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    low: Annotated[float, Field(ge=0, le=100)] = 1.0
    high: Annotated[float, Field(ge=0, le=100)] = 99.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise UserError(f"vra: low must be less than high, got {self.low:g} and {self.high:g}.")

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Find each unit's range, and keep the head.

        Raises:
            UserError: the model ends in no linear layer.
        """
        h = wanted(features.penultimate).cpu().numpy()
        ends = [np.percentile(unit, [self.low, self.high]) for unit in h.T]
        low, high = torch.tensor(np.array(ends)).float().unbind(1)
        return {"low": low, "high": high, **head_state(head, self.id)}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign."""
        h = wanted(features.penultimate)
        return energy(logits_from(h.clamp(state["low"].to(h), state["high"].to(h)), state))
