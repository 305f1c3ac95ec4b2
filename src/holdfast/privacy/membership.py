"""The kind of method that guesses whether an image was trained on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Method

__all__ = ["MembershipInference"]


class MembershipInference(Method, kind="membership"):
    """Scores how likely an image was among those a model learnt from; higher is more likely.

    Kept apart from detectors: an attack may read the label, and what it scores is the model's memory, not the image.
    """

    @abstractmethod
    def score(self, features: Any) -> Float[Tensor, " n"]:
        """Scores (N,), float64, from `holdfast.models.Features` of images with known labels."""
