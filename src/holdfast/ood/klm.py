"""KL matching: an anomaly's class probabilities look like those of no class.

Each class has a typical posterior: the mean softmax of the training images predicted to belong to it, with the
confusions that are usual there. The score is the Kullback-Leibler divergence to the closest one, so that the usual
doubt between two classes is no anomaly, as it is for the maximum softmax probability.

Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.statistics import chunks

__all__ = ["KLMatching"]

_FLOOR = 1e-12  # of a typical probability: the divergence stays finite where a class never took part


@dataclass(frozen=True, kw_only=True)
class KLMatching(
    Detector,
    id="klm",
    title="KL matching",
    paper=Paper(
        title="Scaling Out-of-Distribution Detection for Real-World Settings",
        arxiv="1911.11132",
        venue="ICML",
        year=2022,
    ),
):
    """A posterior far from every class's typical one marks an anomaly.

    Training images are grouped by the predicted class, so their labels are not needed; a class predicted for none of
    them is taken to be certain of itself. The paper learns the posteriors from held-out images: on training images the
    model is surer than it should be. No hyperparameters.
    """

    needs_fit: ClassVar[bool] = True

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """The logarithm of each class's typical posterior, (K, K) float64."""
        predicted, classes = features.predictions, features.num_classes
        sums = features.logits.new_zeros((classes, classes), dtype=torch.float64)
        for rows, part in chunks(features.logits):
            sums.index_add_(0, predicted[rows], part.softmax(1))
        counts = torch.bincount(predicted, minlength=classes)
        certain = torch.eye(classes, dtype=torch.float64)
        typical = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], certain)
        return {"log_typical": typical.clamp(min=_FLOOR).log()}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The divergence of the closest typical posterior, (N,), float64, at least 0."""
        log_typical = state["log_typical"].to(features.logits.device)
        found = []
        for _, part in chunks(features.logits):
            # log p comes from the logits: the log of a rounded p would be minus infinity for unlikely classes.
            log_p = part.log_softmax(1)
            p = log_p.exp()
            found.append(((p * log_p).sum(1, keepdim=True) - p @ log_typical.T).amin(1))
        return torch.cat(found).clamp_(min=0)
