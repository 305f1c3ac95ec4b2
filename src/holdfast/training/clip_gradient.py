"""Gradient clipping: a step never follows more than a given norm of gradient.

Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, arXiv:1211.5063, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from holdfast.methods import Callback, Paper

__all__ = ["ClipGradient"]


@dataclass(frozen=True, kw_only=True)
class ClipGradient(
    Callback,
    id="clip-gradient",
    title="Gradient clipping",
    paper=Paper(
        title="On the difficulty of training recurrent neural networks", arxiv="1211.5063", venue="ICML", year=2013
    ),
):
    """Scale the gradient of all weights together down to a norm, where it is larger.

    Args:
        norm: the largest l2 norm.
    """

    norm: Annotated[float, Field(gt=0)] = 1.0

    def on_gradient(self, state: Any) -> None:
        """Clip."""
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.norm)
