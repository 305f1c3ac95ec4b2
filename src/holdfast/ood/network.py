"""Detectors that must look on while the model sees the images: at maps inside of it, or at gradients.

Most detectors read features that one pass left behind. These take what they need of each batch during that same pass,
reduced to a few numbers per image, so that any number of them still costs one pass over the images.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.methods import Detector
from holdfast.models import Features, Seen
from holdfast.run import Run

__all__ = ["NetworkDetector", "Watch"]


class NetworkDetector(Detector):
    """A detector that observes batches; from what it kept of them it scores.

    `reads` names the features it reads besides, if any; a detector that learns sets `needs_fit` and gives `fit_images`.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def layers(self, model: nn.Module) -> Sequence[str]:
        """Names of the layers whose raw outputs `observe` needs."""
        return ()

    def fit_images(self, model: nn.Module, images: Images, *, run: Run) -> dict[str, Tensor]:
        """Learn the detector's state from in-distribution training images, in as many passes as it takes.

        `holdfast.models.extract` with a `Probe` makes a pass.
        """
        return {}

    @abstractmethod
    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n m"]:
        """What to keep of a batch: a few numbers per image."""

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The first number kept, unless the detector says otherwise."""
        return self.kept(features)[:, 0]

    def kept(self, features: Features) -> Float[Tensor, "n m"]:
        """What `observe` kept of the images."""
        return features.observed[str(self)]


@dataclass(frozen=True)
class Watch:
    """A fitted detector as a probe."""

    method: NetworkDetector
    state: Mapping[str, Tensor]
    layers: Sequence[str]

    def __call__(self, seen: Seen) -> Tensor:
        """What the detector keeps of the batch."""
        return self.method.observe(seen, self.state)
