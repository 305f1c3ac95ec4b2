"""The kinds of method that guess whether an image was trained on."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from holdfast.methods import Method

if TYPE_CHECKING:
    from holdfast.privacy.shadows import Shadows

__all__ = ["MembershipInference", "ShadowAttack"]


class MembershipInference(Method, kind="membership"):
    """Scores how likely an image was among those a model learnt from; higher is more likely.

    Kept apart from detectors: an attack may read the label, and what it scores is the model's memory, not the image.
    """

    @abstractmethod
    def score(self, features: Any) -> Float[Tensor, " n"]:
        """Scores (N,), float64, from `holdfast.models.Features` of images with known labels."""


class ShadowAttack(Method, kind="shadow-membership"):
    """Scores membership by comparing a model with others of its kind that are known to have seen an image, or not.

    A kind of its own, since one model's answers do not suffice for it: what is usual for this image, it learns from
    shadow models.
    """

    @abstractmethod
    def score(self, log_odds: Float[Tensor, "v n"], shadows: Shadows) -> Float[Tensor, " n"]:
        """Scores (N,), float64; higher is more likely.

        Args:
            log_odds: the attacked model's log odds of the labels, for each view of each image; see `observe`.
            shadows: what the shadow models make of the same views of the same images.

        Raises:
            UserError: there are too few shadow models.
        """
