"""Did a model forget? The measures by which unlearning is judged: UA, RA, TA, membership, and distance from retraining.

The target is not a large number but a small gap to a model retrained without the forget set, which generalises to it as
to any unseen data. All measures read features taken in evaluation mode from images without augmentation.

Protocol of Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import UserError
from holdfast.models import Features

__all__ = ["Forgetting", "average_gap", "divergences", "forgetting", "mia_nonmember_rate"]


@dataclass(frozen=True)
class Forgetting:
    """What a model still knows; all are rates in [0, 1].

    Args:
        ua: unlearning accuracy, the error rate on the forget set.
        ra: accuracy on the retained training images.
        ta: accuracy on test images; when a class is forgotten, give test images of the other classes.
        mia_nonmember_rate: share of the forget set that a membership attack takes for unseen.
    """

    ua: float
    ra: float
    ta: float
    mia_nonmember_rate: float


def forgetting(forget: Features, retain: Features, test: Features) -> Forgetting:
    """Measure a model by its features of the forget set, the retained training images, and test images.

    Raises:
        UserError: one of the sets is empty.
    """
    return Forgetting(
        ua=1 - _accuracy("forget", forget),
        ra=_accuracy("retain", retain),
        ta=_accuracy("test", test),
        mia_nonmember_rate=mia_nonmember_rate(forget, retain, test),
    )


def mia_nonmember_rate(forget: Features, retain: Features, test: Features) -> float:
    """The share of the forget set that a support vector machine takes for images the model has not seen.

    It learns to tell members (the first retained images, as many as there are test images, or fewer test images if
    there are not so many) from non-members (test) by one feature, the probability of the true label, with radial basis
    functions, C = 3 and gamma = 1, as in the published protocol. Some papers report the opposite, the share taken for
    members.
    """
    from sklearn.svm import SVC  # takes a moment to import, which not every use should pay

    count = min(len(retain), len(test))
    confidence = np.concatenate([_true_probability(retain)[:count], _true_probability(test)[:count]])
    member = np.repeat([1, 0], count)
    attack = SVC(kernel="rbf", C=3, gamma="auto").fit(confidence[:, None], member)
    return float((attack.predict(_true_probability(forget)[:, None]) == 0).mean())


def average_gap(unlearned: Forgetting, retrained: Forgetting) -> float:
    """The mean absolute difference of the four measures, in percentage points; 0 is perfect."""
    names = [field.name for field in fields(Forgetting)]
    return 100 * sum(abs(getattr(unlearned, name) - getattr(retrained, name)) for name in names) / len(names)


def divergences(retrained: Float[Tensor, "n k"], unlearned: Float[Tensor, "n k"]) -> tuple[float, float]:
    """Jensen-Shannon and Kullback-Leibler divergence of two models' predictions, means over images, in nats.

    Args:
        retrained: logits (N, K) of the reference on the forget set.
        unlearned: logits (N, K) of the model that is judged.

    Returns:
        JS, in [0, log 2], and KL(retrained || unlearned).
    """
    if retrained.shape != unlearned.shape or not len(retrained):
        raise UserError(
            f"divergences: logits of the same images are needed, got {tuple(retrained.shape)} and "
            f"{tuple(unlearned.shape)}."
        )
    log_p, log_q = retrained.double().log_softmax(1), unlearned.double().log_softmax(1)
    log_mean = torch.logaddexp(log_p, log_q) - np.log(2)
    js = (_kl(log_p, log_mean) + _kl(log_q, log_mean)) / 2
    return max(0.0, float(js.mean())), max(0.0, float(_kl(log_p, log_q).mean()))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _accuracy(name: str, features: Features) -> float:
    if not len(features):
        raise UserError(f"forgetting: the {name} set is empty.")
    return float((features.predictions == features.y).double().mean())


def _true_probability(features: Features) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return features.logits.double().softmax(1).gather(1, features.y[:, None]).squeeze(1).numpy()
