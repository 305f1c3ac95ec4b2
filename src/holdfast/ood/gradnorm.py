"""GradNorm: the classifier would have more to unlearn about a known input.

The gradient, with respect to the last layer's weights, of the cross-entropy between the uniform distribution and the
softmax is large where activations are large and the softmax is far from uniform. It is an outer product, and so its L1
norm is a product of two norms; no gradient needs to be computed.

Huang et al., "On the Importance of Gradients for Detecting Distributional Shifts in the Wild", NeurIPS 2021,
arXiv:2110.00218.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import wanted

__all__ = ["GradNorm"]


@dataclass(frozen=True, kw_only=True)
class GradNorm(
    Detector,
    id="gradnorm",
    title="Gradient norm",
    paper=Paper(
        title="On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
        arxiv="2110.00218",
        venue="NeurIPS",
        year=2021,
    ),
):
    """A small gradient of the uniform cross-entropy, summed over classes, marks an anomaly.

    The value is that of the official code: the mean over classes, which the paper writes, is a C-th of it.

    Args:
        temperature: of the softmax.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})

    temperature: Annotated[float, Field(gt=0)] = 1.0

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Minus the L1 norm of the gradient, (N,), float64, at most 0."""
        z = features.logits.double() / self.temperature
        # d/dW of -sum_k log softmax(z)_k is (C softmax(z) - 1) h^T / T.
        surplus = (z.shape[1] * z.softmax(1) - 1).abs().sum(1)
        return -wanted(features.penultimate).abs().sum(1, dtype=z.dtype) * surplus / self.temperature
