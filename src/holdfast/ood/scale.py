"""SCALE: stretch the logits of inputs whose activation is concentrated, then take the energy.

Known images excite few units strongly, unknown ones many units weakly. The share of the activation that the strongest
units hold therefore tells them apart; it sets a factor for all activations of the image, and none is pruned.

Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement", ICLR 2024,
arXiv:2310.00227.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.head import energy, head_state, wanted

__all__ = ["SCALE", "stretched_logits", "strongest"]

# float64 holds exp(700). The sums' ratio is at most the number of units by that of the strong ones, and seldom as much.
_LARGEST_EXPONENT = 600.0


@dataclass(frozen=True, kw_only=True)
class SCALE(
    Detector,
    id="scale",
    title="Activation scaling",
    paper=Paper(
        title="Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement",
        arxiv="2310.00227",
        venue="ICLR",
        year=2024,
    ),
):
    """High energy of the logits of scaled activations marks an anomaly.

    An image's activations are multiplied by ``exp(s1 / s2)``: `s1` is their sum, `s2` the sum of the strongest. The
    features must not be negative, as after a ReLU; otherwise the ratio has no meaning.

    Args:
        percentile: of an image's activations, above which they count as strong; at least one does. At 0 the factor is
            e for all images. OpenOOD tries 65 to 95. Of ResNet-20's 64 features 85 leaves ten,
            which serves far sets; near ones need 65.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"penultimate"})
    needs_fit: ClassVar[bool] = True

    percentile: Annotated[float, Field(ge=0, lt=100)] = 85.0

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Keep the head.

        Raises:
            UserError: the model ends in no linear layer.
        """
        return head_state(head, self.id)

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The free energy, (N,), float64, any sign, and large where the factor is."""
        h = wanted(features.penultimate)
        s2 = strongest(h, self.percentile)[0].sum(1)
        return energy(stretched_logits(h, h.sum(1), s2, state))


def strongest(h: Float[Tensor, "n d"], percentile: float) -> tuple[Float[Tensor, "n k"], Tensor]:
    """Each row's largest activations and their positions: those above a percentile of the row, at least one."""
    count = h.shape[1] - round(h.shape[1] * percentile / 100)
    values, positions = h.topk(max(count, 1), dim=1, sorted=False)
    return values, positions


def stretched_logits(
    h: Float[Tensor, "n d"], s1: Float[Tensor, " n"], s2: Float[Tensor, " n"], state: Mapping[str, Tensor]
) -> Float[Tensor, "n k"]:
    """The head's output for features times ``exp(s1 / s2)``, float64: in float32 the factor would overflow at 88.

    Where both sums are zero the factor is e, as for a row of equal activations in no need of pruning.
    """
    ratio = (s1.double() / s2.double()).nan_to_num(1.0).clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    stretched = (h @ state["weight"].to(h).T).double() * ratio.exp()[:, None]
    return stretched + state["bias"].to(stretched)
