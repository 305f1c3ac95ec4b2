"""ViM: what a feature has outside the space of the training features, as one more logit beside the classifier's.

The length of a feature's part outside the principal space is scaled so that on training images it is as large as the
largest logit, and joins the logits. Its share of the softmax is the score: it unites what only the features know with
what only the logits know.

Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, arXiv:2203.10807.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, wanted
from holdfast.ood.statistics import chunks, covariance

__all__ = ["ViM"]

# Variances below this share of the largest are rounding: a residual made of such directions alone would be noise.
_FLAT = 1e-12


@dataclass(frozen=True, kw_only=True)
class ViM(
    Detector,
    id="vim",
    title="Virtual-logit matching",
    paper=Paper(
        title="ViM: Out-Of-Distribution with Virtual-logit Matching", arxiv="2203.10807", venue="CVPR", year=2022
    ),
):
    """A virtual logit that outweighs the classifier's marks an anomaly.

    Args:
        dim: directions of the principal space, below the number D of features. By default the paper's 1000 for D of at
            least 2048, 512 for D of at least 768, and else D / 2; fewer where the training features fill no more.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})
    needs_fit: ClassVar[bool] = True

    dim: Annotated[int, Field(ge=1)] | None = None

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The origin (D,), the residual directions (D, R), and the scale ``alpha``.

        Raises:
            UserError: the model has no last linear layer, or no direction in which the features vary would be left.
        """
        h = wanted(features.penultimate)
        layer = head_state(head, self.id)
        # Features at the origin have logits 0: the bias is taken into the features.
        origin = -torch.linalg.pinv(layer["weight"].double()) @ layer["bias"].double()
        values, vectors = torch.linalg.eigh(covariance(h, origin))
        filled = int((values > values[-1] * _FLAT).sum())
        residual = vectors[:, : len(values) - self._dim(len(values), filled)].contiguous()
        lengths = _lengths(h, origin, residual)
        alpha = features.logits.double().amax(1).mean() / lengths.mean()
        return {"origin": origin, "residual": residual, "alpha": alpha}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The virtual logit less the log of the summed exponentials of the others, (N,), float64, any sign.

        It is the log odds of the virtual logit's share of the softmax.
        """
        lengths = _lengths(wanted(features.penultimate), state["origin"], state["residual"])
        return state["alpha"].to(lengths.device) * lengths + energy(features.logits)

    def _dim(self, total: int, filled: int) -> int:
        if self.dim is not None and self.dim >= total:
            raise UserError(f"vim: dim must be below the {total} features of the model, got {self.dim}.")
        usual = 1000 if total >= 2048 else 512 if total >= 768 else total // 2
        dim = min(usual, filled - 1) if self.dim is None else self.dim
        if not 1 <= dim < filled:
            raise UserError(
                f"vim: the training features vary in {filled} directions, so a principal space of {max(dim, 1)} leaves "
                "none beside it."
            )
        return dim


def _lengths(h: Float[Tensor, "n d"], origin: Float[Tensor, " d"], residual: Tensor) -> Float[Tensor, " n"]:
    """How long each feature's part along the residual directions is."""
    origin, residual = origin.to(h.device), residual.to(h.device)
    return torch.cat([((part - origin) @ residual).norm(dim=1) for _, part in chunks(h)])
