"""OpenMax: a class's logit counts only as far as the logits are as near to the class's mean as known images are.

For each class a Weibull distribution is fitted to the largest distances of its training images' logits from their mean.
The chance that a distance is out of the ordinary is taken off the logit of each top class, and what was taken off
becomes the logit of a further class, the unknown.

Bendale and Boult, "Towards Open Set Deep Networks", CVPR 2016, arXiv:1511.06233.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import scipy  # its modules load on first use
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.statistics import chunks

__all__ = ["OpenMax"]

_NARROWEST = 1e-6  # of a distance: the scale of a tail without spread


@dataclass(frozen=True, kw_only=True)
class OpenMax(
    Detector,
    id="openmax",
    title="OpenMax",
    paper=Paper(title="Towards Open Set Deep Networks", arxiv="1511.06233", venue="CVPR", year=2016),
):
    """A large probability of the unknown class marks an anomaly (algorithms 1 and 2 of the paper).

    The paper's Weibull fit places the tail's least distance at 10,000, where the distribution is its Gumbel limit to
    three digits; the limit is fitted here. A class whose training images are too few or too alike for a fit takes the
    distances of all classes, and an image predicted to belong to a class without any is unknown to it. Negative logits
    shrink towards 0, as in the paper.

    Args:
        tail: number of the largest distances of a class that are fitted.
        alpha: number of top classes whose logits are revised, the first in full and the others less and less. The paper
            takes 10 of ImageNet's 1000; OpenOOD 3.
        distance: ``euclidean``, or ``eucos``, half of it plus the cosine distance.
    """

    needs_fit: ClassVar[bool] = True

    tail: Annotated[int, Field(ge=2)] = 20
    alpha: Annotated[int, Field(ge=1)] = 3
    distance: Literal["euclidean", "eucos"] = "euclidean"

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The mean logits of each class, (K, K), and the location and scale of its distances' tail, (K,); float64."""
        classes, y = features.num_classes, features.y
        right = features.predictions == y
        means = torch.zeros(classes, classes, dtype=torch.float64)
        tails: dict[int, Tensor] = {}
        for label in y.unique().tolist():
            of_class = (y == label) & right
            logits = features.logits[of_class if of_class.any() else y == label].double()
            means[label] = logits.mean(0)
            distances = self._distances(logits, means[label : label + 1])[:, 0]
            tails[label] = distances.topk(min(self.tail, len(distances))).values
        everyone = torch.cat(list(tails.values()))
        location, scale = torch.full((classes,), -torch.inf).double(), torch.ones(classes).double()
        for label, distances in tails.items():
            location[label], scale[label] = _tail(distances if len(distances.unique()) > 1 else everyone)
        return {"means": means, "location": location, "scale": scale}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The log odds of the unknown class, (N,), float64, any sign."""
        z = features.logits
        means, location, scale = (state[name].to(z.device) for name in ("means", "location", "scale"))
        return torch.cat([self._log_odds(part, means, location, scale) for _, part in chunks(z)])

    def _log_odds(self, z: Float[Tensor, "n k"], means: Tensor, location: Tensor, scale: Tensor) -> Float[Tensor, " n"]:
        outside = -torch.expm1(-torch.exp((self._distances(z, means) - location) / scale))
        ranked = z.argsort(dim=1, descending=True, stable=True)[:, : self.alpha]
        weights = torch.linspace(1, 1 / ranked.shape[1], ranked.shape[1]).to(z)
        share = torch.zeros_like(z).scatter_(1, ranked, weights.expand(len(z), -1))
        taken = z * outside * share
        return taken.sum(1) - torch.logsumexp(z - taken, dim=1)

    def _distances(self, z: Float[Tensor, "n k"], means: Float[Tensor, "c k"]) -> Float[Tensor, "n c"]:
        euclidean = torch.cdist(z, means, compute_mode="donot_use_mm_for_euclid_dist")
        if self.distance == "euclidean":
            return euclidean
        cosine = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(means, dim=1).T
        return euclidean / 2 + 1 - cosine


def _tail(distances: Float[Tensor, " n"]) -> tuple[float, float]:
    """Location and scale of the Gumbel distribution of the largest distances."""
    largest = float(distances.max())
    if len(distances.unique()) == 1:
        return largest, _NARROWEST * max(largest, 1.0)
    location, scale = scipy.stats.gumbel_l.fit(distances.numpy())
    return float(location), max(float(scale), _NARROWEST * max(largest, 1.0))
