"""ODIN: known inputs gain more confidence from a small step that raises it; a high temperature shows the difference.

Each image moves a little against the gradient of its own cross-entropy with the predicted class. The softmax score of
the moved image is then read at a temperature so high that it measures how far the top logit stands above the others.

Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks", ICLR 2018,
arXiv:1706.02690.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Paper
from holdfast.models import Features, Seen
from holdfast.ood.msp import log_odds
from holdfast.ood.network import NetworkDetector

__all__ = ["ODIN"]


@dataclass(frozen=True, kw_only=True)
class ODIN(
    NetworkDetector,
    id="odin",
    title="ODIN",
    paper=Paper(
        title="Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
        arxiv="1706.02690",
        venue="ICLR",
        year=2018,
    ),
):
    """Low confidence at a high temperature, after a step that raises it, marks an anomaly.

    The score is the log odds against the predicted class, as for `msp`. It costs two passes and a gradient besides the
    pass over the images. The moved images may leave [0, 1], as in the official code; unlike there, pixels without a
    gradient stay.

    Args:
        temperature: of the softmax; the paper takes 1000 throughout.
        eps: the step, in [0, 1] pixel units, per pixel. The paper chooses it on unknown images: 0.0014 for CIFAR-10. 0
            leaves the images as they are.
    """

    temperature: Annotated[float, Field(gt=0)] = 1000.0
    eps: Annotated[float, Field(ge=0, le=1)] = 0.0014

    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """The logits of the moved images."""
        if self.eps == 0:
            return seen.logits
        with torch.enable_grad():
            x = seen.x.detach().requires_grad_()
            # The log odds have the cross-entropy's gradient up to a positive factor, and keep it where the softmax
            # rounds to 1.
            doubt = log_odds(seen.model(x).float(), self.temperature).sum()
            (gradient,) = torch.autograd.grad(doubt, x)
        return seen.model(seen.x - self.eps * gradient.sign()).float()

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Log odds against the predicted class, (N,), float64; needs at least two classes."""
        return log_odds(self.kept(features), self.temperature)
