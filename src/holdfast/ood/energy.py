"""Energy: the classifier's logits as an unnormalised density of its inputs.

The free energy ``-T log sum_k exp(z_k / T)`` is low where the training data were. It reads the logits' size, which the
softmax throws away.

Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv:2010.03759.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features

__all__ = ["Energy"]


@dataclass(frozen=True, kw_only=True)
class Energy(
    Detector,
    id="energy",
    title="Energy score",
    paper=Paper(title="Energy-based Out-of-distribution Detection", arxiv="2010.03759", venue="NeurIPS", year=2020),
):
    """High free energy of the logits marks an anomaly (equation 4 of the paper).

    Args:
        temperature: towards 0 the score becomes `max-logit`, towards infinity minus the mean logit (plus a constant).
    """

    temperature: Annotated[float, Field(gt=0)] = 1.0

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign."""
        return -self.temperature * torch.logsumexp(features.logits.double() / self.temperature, dim=1)
