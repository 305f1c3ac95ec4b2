"""LogitNorm: train on the direction of the logits alone, so that confidence cannot grow by their length.

Cross-entropy goes on lengthening the logits of images that are classified rightly, and of everything alike, which makes
the softmax overconfident everywhere. With logits of constant length it must turn them instead.

Wei et al., "Mitigating Neural Network Overconfidence with Logit Normalization", ICML 2022, arXiv:2205.09310,
equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Objective, Paper
from holdfast.training import Step

__all__ = ["LogitNorm", "normalised"]


@dataclass(frozen=True, kw_only=True)
class LogitNorm(
    Objective,
    id="logit-norm",
    title="Logit normalisation",
    paper=Paper(
        title="Mitigating Neural Network Overconfidence with Logit Normalization",
        arxiv="2205.09310",
        venue="ICML",
        year=2022,
    ),
):
    """Cross-entropy of logits divided by their length and a temperature.

    Trained from scratch like any network, which then gives its raw logits; `msp` reads those.

    Args:
        temperature: with 0.04 the normalised logits have length 25; below 0.01 training at a usual rate diverges.
    """

    temperature: Annotated[float, Field(gt=0)] = 0.04

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y)."""
        return F.cross_entropy(normalised(step.seen(model(x)), self.temperature), y)


def normalised(logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """Logits of length ``1 / temperature``."""
    return logits / (temperature * (logits.norm(dim=1, keepdim=True) + 1e-7))
