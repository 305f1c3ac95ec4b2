"""What a model says about images, and what it says after an attack, as arrays."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Attacked", "Predictions"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about N images, as arrays.

    Args:
        logits: float64 (N, K).
        y: labels (N,).
    """

    logits: NDArray[np.float64]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    @functools.cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all logits of an image are finite (N,)."""
        return np.asarray(np.isfinite(self.logits).all(axis=1))

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax (N, K); NaN where a logit is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            powers = np.exp(self.logits - self.logits.max(1, keepdims=True))
            shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
        shares[~self.finite] = np.nan
        return shares

    @functools.cached_property
    def label(self) -> NDArray[np.int64]:
        """The predicted class (N,); -1, which is no class, where a logit is not finite."""
        return np.where(self.finite, self.logits.argmax(1), -1)

    @functools.cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class (N,)."""
        return self.probabilities.max(1)

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction is right (N,)."""
        return self.label == self.y

    def select(self, which: Any) -> Predictions:
        """The predictions at some positions."""
        return Predictions(self.logits[which], self.y[which])


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack did to N images.

    Args:
        success: the prediction is wrong after the attack; true also where it was before.
        queries: forward passes spent on each.
        distance: of the attacked image from the clean one, in the attack's norm.
        prediction, confidence: after the attack.
        examples: some adversarial images (M, C, H, W) of images that were right before.
        example_of: their positions among the test images (M,).
    """

    success: NDArray[np.bool_]
    queries: NDArray[np.int64]
    distance: NDArray[np.float32]
    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    examples: NDArray[np.float32]
    example_of: NDArray[np.int64]

    @classmethod
    def nothing(cls, x: Tensor) -> Attacked:
        """The outcome on no images, of the shape of `x`."""
        none, some = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(none.astype(bool), none, some, none, some, np.zeros((0, *x.shape[1:]), np.float32), none)
